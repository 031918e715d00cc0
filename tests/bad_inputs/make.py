"""Makes the bad inputs that are too large, too odd or too binary to lie in the repository: each function gives one file's bytes."""

import gzip as gzip_module
import io
import json
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

ROW = '{"prompt": "a", "completion": "b"}\n'
TABLE = pa.table({"prompt": ["a", "b", "c"], "completion": ["d", "e", "f"]})
LONG = b'{"prompt": "a", "completion": "' + b"b" * (2**20 - 34) + b'"}\n'


# Text -------------------------------------------------------------------------------------------------------------


def repeated(text: str, count: int, before: str = "", after: str = "") -> bytes:
    return (before + text * count + after).encode()


def one_bad_line(line: str, at: int, count: int = 500) -> bytes:
    lines = [ROW] * count
    lines[at - 1] = line + "\n"
    return "".join(lines).encode()


def nested(kind: str, depth: int, closed: bool) -> bytes:
    inner = ("[" if kind == "list" else '{"a":') * depth
    return (inner + "1" * closed + ("]" if kind == "list" else "}") * depth * closed).encode()


def nested_in_a_row(depth: int) -> bytes:
    return b'{"prompt": "a", "completion": "b", "x": ' + b"[" * depth + b"]" * depth + b"}\n"


def columns_csv(count: int) -> bytes:
    return (",".join(f"c{n}" for n in range(count)) + "\n" + ",".join("1" * count) + "\n").encode()


def columns_json(count: int) -> bytes:
    return json.dumps([{f"c{n}": "1" for n in range(count)}]).encode()


def utf16(text: str, order: str, mark: bool) -> bytes:
    return ("\ufeff" * mark + text).encode(f"utf-16-{order}")


def numbers_as_answers(count: int) -> bytes:
    return "".join(json.dumps({"prompt": f"{n} + 1", "completion": n + 1}) + "\n" for n in range(count)).encode()


# Columns ----------------------------------------------------------------------------------------------------------


def parquet(kind: str = "") -> bytes:
    table = {
        "": TABLE, "no rows": TABLE.slice(0, 0), "no columns": pa.table({}),
        "binary": pa.table({"prompt": ["a"], "completion": ["b"], "picture": [b"\x89PNG" * 100]}),
        "wide": pa.table({f"c{n}": [1] for n in range(10_000)}),
        "lists": pa.table({"messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]}),
        "not utf-8": pa.table({"text": pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")])}),
    }[kind]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def parquet_bomb() -> bytes:
    """One long value that a dictionary repeats: 100 GB out of a few kilobytes, of which the footer says nothing."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 2**20]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": repeated}), sink, store_schema=False)
    return sink.getvalue().to_pybytes()


def arrow(kind: str = "file") -> bytes:
    sink = pa.BufferOutputStream()
    if kind == "feather":
        feather.write_feather(TABLE, sink)
    else:
        table = {"no rows": TABLE.slice(0, 0), "twice": pa.Table.from_arrays([pa.array(["a"])] * 2, ["a", "a"])}.get(kind, TABLE)
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def arrow_bomb() -> bytes:
    """Ten billion letters behind one long value and its places."""
    text = pa.RunEndEncodedArray.from_arrays(pa.array([2_000_000_000], pa.int32()), pa.array(["x" * 2**20]))
    table = pa.table({"text": text})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def arrow_view_bomb() -> bytes:
    """A hundred thousand views of one megabyte: to look at each is to look at 100 GB."""
    views = pa.py_buffer(struct.pack("<i4sii", 2**20, b"xxxx", 0, 0) * 100_000)
    table = pa.table({"text": pa.Array.from_buffers(pa.string_view(), 100_000, [None, views, pa.py_buffer(b"x" * 2**20)])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


# Packed -----------------------------------------------------------------------------------------------------------


def gzip(text: str = ROW * 3) -> bytes:
    return gzip_module.compress(text.encode(), mtime=0)


def zstd(text: str = ROW * 3) -> bytes:
    return pa.compress(text.encode(), codec="zstd", asbytes=True)


def gzip_of(maker: str, *args) -> bytes:
    return gzip_module.compress(globals()[maker](*args), mtime=0)


def cut(maker: str, keep: int, *args) -> bytes:
    """Another file's first bytes; a negative number leaves out so many of its last."""
    return globals()[maker](*args)[:keep]


def flipped(maker: str, at: int, *args) -> bytes:
    """Another file with all bits of one byte turned."""
    content = bytearray(globals()[maker](*args))
    content[at] ^= 0xFF
    return bytes(content)


def and_more(maker: str, text: str, *args) -> bytes:
    return globals()[maker](*args) + text.encode("latin-1")


def gzip_bomb() -> bytes:
    """320 MiB of rows in some hundred kilobytes: one gzip stream after the other, which is a gzip file too."""
    return gzip_module.compress(LONG * 16, mtime=0) * 20


def zstd_bomb() -> bytes:
    return pa.compress(LONG * 16, codec="zstd", asbytes=True) * 20


def blank_bomb() -> bytes:
    """White space only, which no reader of rows would ever stop at."""
    return gzip_module.compress(b"\n" * 2**24, mtime=0) * 20


# Zips -------------------------------------------------------------------------------------------------------------


def zip_of(members: dict, stored: bool = False) -> bytes:
    """A zip of members by name; a value that is a list is another maker and what it takes."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)  # a fixed date, so the same bytes each time
            info.compress_type = archive.compression
            archive.writestr(info, globals()[content[0]](*content[1:]) if isinstance(content, list) else content)
    return sink.getvalue()


def zip_named(name: str) -> bytes:
    return zip_of({"rows.jsonl": ROW, name: ROW})


def zip_method(method: int) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        archive.writestr("rows.jsonl", ROW * 100)
    return sink.getvalue()


def zip_mode(mode: int, target: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("rows.jsonl", ROW)
        info = zipfile.ZipInfo("more.jsonl")
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, target)
    return sink.getvalue()


def zip_link(target: str) -> bytes:
    return zip_mode(stat.S_IFLNK | 0o777, target)


def zip_device() -> bytes:
    return zip_mode(stat.S_IFCHR | 0o666, "")


def zip_many(count: int) -> bytes:
    return zip_of({f"{n}.jsonl": ROW for n in range(count)}, stored=True)


def zip_listing(count: int) -> bytes:
    """A table of contents of megabytes: the same small member, listed again and again."""
    content = bytearray(zip_of({"a.jsonl": ROW}))
    end = content.rindex(b"PK\x05\x06")
    entry = bytes(content[content.rindex(b"PK\x01\x02") : end])
    start = end - len(entry)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, start, 0)
    return bytes(content[:start]) + entry * count + tail


def zip_encrypted() -> bytes:
    content = bytearray(zip_of({"rows.jsonl": ROW}))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def zip_forged(size: int) -> bytes:
    """A member of 100 rows whose header declares another size."""
    content = bytearray(zip_of({"rows.jsonl": ROW * 100}))
    content[22:26] = struct.pack("<L", size)
    at = content.rindex(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<L", size)
    return bytes(content)


def zip_wrong_crc() -> bytes:
    content = bytearray(zip_of({"rows.jsonl": ROW}))
    at = content.rindex(b"PK\x01\x02") + 16
    content[at] ^= 0xFF
    content[14] ^= 0xFF
    return bytes(content)


def _raw_zip(deflated: bytes, size: int, entries: int) -> bytes:
    name = b"a.jsonl"
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0x21, 0, len(deflated), size, len(name), 0) + name
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0x21, 0, len(deflated), size, len(name), 0, 0, 0, 0, 0, 0) + name
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, len(entry) * entries, len(head) + len(deflated), 0)
    return head + deflated + entry * entries + tail


def zip_bomb() -> bytes:
    """320 MiB of rows in one member of some hundred kilobytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(LONG * 16) + packer.flush(zlib.Z_FULL_FLUSH)  # after which the stream may go on anywhere
    return _raw_zip(piece * 20 + packer.flush(), 20 * 16 * len(LONG), 1)


def zip_bomb_listed_often() -> bytes:
    """The same few bytes listed 400 times, a megabyte each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = packer.compress(LONG) + packer.flush()
    crc = zlib.crc32(LONG)
    content = bytearray(_raw_zip(deflated, len(LONG), 400))
    content[14:18] = struct.pack("<L", crc)
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 16 : at + 20] = struct.pack("<L", crc)
        at = content.find(b"PK\x01\x02", at + 4)
    return bytes(content)


def xlsx() -> bytes:
    return zip_of({"[Content_Types].xml": "<Types/>", "xl/workbook.xml": "<workbook/>", "xl/worksheets/sheet1.xml": "<worksheet/>"})


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2L5B", 1, 1, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0\0\0\0")) + chunk(b"IEND", b"")


if __name__ == "__main__":
    # For a look at them by hand: python -m tests.bad_inputs.make FOLDER
    import sys

    from tests.bad_inputs import cases

    for case in cases():
        for path, called in case.files(Path(sys.argv[1])):
            print(path, repr(called))
