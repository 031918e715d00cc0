"""Records out of Parquet and Arrow files, a few rows at a time."""

import math
from collections.abc import Iterator
from pathlib import Path

from tuner import pictures, reading_pictures
from tuner.errors import UserError, shorten
from tuner.reading_files import BLOCK, MAX_COLUMNS, MAX_EXPANDED_BYTES, Budget, Meter, Source, clean, too_large

_VIEWS = ("string_view", "binary_view")


def read_columns(path: Path, source: Source, meter: Meter, budget: Budget) -> Iterator[dict]:
    """The rows of a Parquet or Arrow file on disk, few enough at once to stay small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown, kind = source.shown, source.kind

    def rows_at_once(largest_bytes: float, mean_bytes: float) -> int:
        """How many rows stay small, even where each refers to the same large value, as dictionaries let them."""
        return int(max(1, min(1024, MAX_EXPANDED_BYTES // 64 // max(1, largest_bytes, mean_bytes))))

    def read_parquet(file: pq.ParquetFile, source: pa.NativeFile) -> Iterator[tuple[pa.RecordBatch, float]]:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        # Sizes are declared in the footer: a small file that unpacks to gigabytes is refused before it does.
        if sum(group.total_byte_size for group in groups) > MAX_EXPANDED_BYTES:
            raise UserError(too_large(shown))
        largest = max((_most_repeated(source, group.column(i)) for group in groups for i in range(group.num_columns)), default=0)
        mean = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, file.metadata.num_rows)
        for batch in file.iter_batches(rows_at_once(largest, mean)):
            yield batch, batch.num_rows / rows

    def read_arrow(file) -> Iterator[tuple[pa.RecordBatch, float]]:
        streamed = isinstance(file, pa.RecordBatchStreamReader)
        kinds = sorted({kind for field in file.schema if str(field.type) not in _VIEWS for kind in _kinds_within(field.type)})
        by_reference = any(word in kind for kind in kinds for word in ("dictionary", "run_end", "extension"))
        if nested := [kind for kind in kinds if "view" in kind]:
            raise UserError(f"{shown} has a column with a {nested[0]} within, which is not read here. Save it as Parquet.")
        share = 0 if streamed else 1 / max(1, file.num_record_batches)
        for batch in file if streamed else map(file.get_batch, range(file.num_record_batches)):
            batch.validate()
            lengths = [length for column in batch.columns if str(column.type) in _VIEWS for length in _view_lengths(column)]
            if sum(map(abs, lengths)) > MAX_EXPANDED_BYTES:  # validation looks at every letter of every view, however few there are
                raise UserError(too_large(shown))
            batch.validate(full=True)  # a wrong offset would otherwise end this process
            size = batch.get_total_buffer_size()
            step = rows_at_once(max(lengths, default=0) if not by_reference else size, size / max(1, batch.num_rows))
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                yield part, share * part.num_rows / batch.num_rows

    try:
        with pa.OSFile(str(path)) as file:
            if kind == "Parquet":
                # pyarrow would otherwise hold whole column chunks, which may be all of a file.
                opened = pq.ParquetFile(file, buffer_size=BLOCK, pre_buffer=False)
                names = opened.schema_arrow.names
            else:
                whole = file.read(6) == b"ARROW1"
                file.seek(0)
                opened = pa.ipc.open_file(file) if whole else pa.ipc.open_stream(file)
                names = opened.schema.names
            classes = reading_pictures.class_names((opened.schema_arrow if kind == "Parquet" else opened.schema).metadata)
            if len(names) > MAX_COLUMNS:
                raise UserError(f"{shown} has {len(names):,} columns; the most is {MAX_COLUMNS:,}. Keep those that matter.")
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"{shown} has the column {shorten(twice[0], 30)!r} twice. Give each column its own name.")
            for batch, share in read_parquet(opened, file) if kind == "Parquet" else read_arrow(opened):
                if not source.packing:  # else its bytes were told as they were unpacked
                    meter.add(share * source.size)
                for record in batch.to_pylist():
                    budget.spend(_weight(record), source, packed=False)
                    yield plain(reading_pictures.named(reading_pictures.in_columns(record), classes))
    except RecursionError:
        raise UserError(f"{shown} is nested too deep. Flatten it.") from None
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        reason = shorten(clean(str(error).split("\n")[0]), 80).rstrip(". ")
        raise UserError(f"{shown} cannot be read as {kind}: {reason}. It may be damaged or another kind of file.") from None


def plain(value):
    """The value as JSON can hold it; bytes and dates become text, numbers that are none become nothing."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool, pictures.Taken, pictures.NoPicture)):
        return value
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return str(value)


def _kinds_within(kind) -> Iterator[str]:
    """The names of an Arrow type and of those that it is made of."""
    yield str(kind) if not kind.num_fields else str(kind).split("<")[0]
    for place in range(kind.num_fields):
        yield from _kinds_within(kind.field(place).type)


def _view_lengths(column) -> list[int]:
    """The length of each value in a column of views, each of 16 bytes that begin with it."""
    views = memoryview(column.buffers()[1]).cast("B")[16 * column.offset : 16 * (column.offset + len(column))]
    return views.cast("i")[::4].tolist()


def _most_repeated(file, chunk) -> int:
    """The bytes that each row of a Parquet column chunk may repeat: those of its dictionary, or all where that is unknown."""
    if "DELTA_BYTE_ARRAY" in chunk.encodings:  # each value may begin with all of the one before
        return chunk.total_uncompressed_size
    file.seek(min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset is not None))
    # A page's header is Thrift's compact form: field 1 its type (2 is a dictionary), field 2 its size unpacked, zigzag varints.
    head = file.read(16)
    if head[:1] != b"\x15" or head[2:3] != b"\x15":
        return chunk.total_uncompressed_size
    size, shift = 0, 0
    for byte in head[3:]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return size >> 1 if head[1] == 4 else 0
    return chunk.total_uncompressed_size


def _weight(value) -> int:
    """The characters or bytes of text in a value; eight for whatever else there is."""
    if isinstance(value, (dict, list)):
        return sum(map(_weight, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, (str, bytes)) else 8
