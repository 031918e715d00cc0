"""Licences of base models: the identifiers the Hub knows, where each text stands, and what its terms ask of a tuned model."""

from dataclasses import dataclass

# docs/hub/repositories-licenses.md of huggingface/hub-docs; the Hub refuses a card with any other identifier.
IDENTIFIERS = frozenset("""
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1
ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
llama3.3 llama4 grok2-community gemma unknown other
""".split())

_TEXTS = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0", "mit": "https://opensource.org/license/mit",
    "gpl-3.0": "https://www.gnu.org/licenses/gpl-3.0.html", "agpl-3.0": "https://www.gnu.org/licenses/agpl-3.0.html",
    "mpl-2.0": "https://www.mozilla.org/MPL/2.0/", "cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "cc-by-sa-4.0": "https://creativecommons.org/licenses/by-sa/4.0/", "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "cc-by-nc-sa-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/", "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "llama2": "https://www.llama.com/llama2/license/", "llama3": "https://www.llama.com/llama3/license/",
    "llama3.1": "https://www.llama.com/llama3_1/license/", "llama3.2": "https://www.llama.com/llama3_2/license/",
    "llama3.3": "https://www.llama.com/llama3_3/license/", "llama4": "https://www.llama.com/llama4/license/",
    "gemma": "https://ai.google.dev/gemma/terms",
}
_GEMMA_USE = "https://ai.google.dev/gemma/prohibited_use_policy"


@dataclass(frozen=True)
class Licence:
    """A base model's licence, as its card names it.

    Args:
        id: the Hub's identifier; "unknown" where the base's card names none.
        name: what it is called, in words.
        url: where its text stands; the base's own page where nobody says.
    """

    id: str
    name: str
    url: str


def of(base: dict) -> Licence:
    """The licence of a run's base; `base` is {"id", "licence": {"license", "license_name", "license_link"}, ...}."""
    said = base.get("licence") or {}
    its = str(said.get("license") or "unknown")
    page = f"https://huggingface.co/{base['id']}"
    link = str(said.get("license_link") or "")
    if link and not link.startswith("https://"):  # a file in the base's own repository
        link = f"{page}/blob/main/{link}" if link.replace(".", "").replace("-", "").replace("_", "").isalnum() else ""
    return Licence(its, str(said.get("license_name") or its), link or _TEXTS.get(its, page))


def metadata(base: dict) -> dict[str, str]:
    """What a card's metadata says of it: `license`, and for "other" its name and link, which the Hub then asks for."""
    its = of(base)
    if its.id != "other":
        return {"license": its.id, **{name: text for name, text in (base.get("licence") or {}).items() if name != "license"}}
    return {"license": "other", "license_name": its.name if its.name != "other" else "see-base-model", "license_link": its.url}


def terms(base: dict) -> list[str]:
    """What the licence asks of who publishes or uses a model tuned from this base, in sentences of Markdown."""
    its = of(base)
    if its.id == "unknown":
        return [f"The base model's card names no licence; look on [its page]({its.url}) before you use this."]
    said = [f"The base model's licence, [{its.name}]({its.url}), applies to what is built on it, this adapter included."]
    if its.id.startswith("llama"):
        version = its.id.removeprefix("llama")
        said += [
            "Built with Llama.",
            f"Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
            f"Its [acceptable use policy]({its.url.removesuffix('license/')}use-policy/) is part of the licence.",
        ]
    if its.id == "gemma":
        said += [
            f"Gemma is provided under and subject to the [Gemma Terms of Use]({_TEXTS['gemma']}), which go with every copy; "
            f"their [prohibited use policy]({_GEMMA_USE}) binds whoever uses this adapter.",
            "This adapter modifies Gemma: its weights are not Google's.",
        ]
    return said


def advice_on_name(base: dict, name: str) -> str:
    """A sentence where the licence asks something of a published model's name that this one does not have; else ""."""
    if of(base).id in ("llama3", "llama3.1", "llama3.2", "llama3.3", "llama4") and not name.lower().startswith("llama"):
        return f"The {of(base).name} licence asks that a model tuned from it and shared begins its name with “Llama”; {name!r} does not."
    return ""
