"""Checks the files beside an adapter's weights that change how its answers are made.

Trainers save the chat template, the tokenizer and the generation configuration with an adapter.
Each difference from the base's files either holds for the version's requests, or is refused, or
gives a warning.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters_registry.chat_templates.renderer import TemplateRenderer
from adapters_registry.chat_templates.sandbox import TemplateFailed, special_tokens
from adapters_registry.check.companions.generation import sampling_defaults, stop_tokens
from adapters_registry.check.companions.serving_defaults import (
    CompanionFindings,
    ServingDefaults,
    differing,
    listed,
)
from adapters_registry.check.companions.vocabulary import (
    Vocabulary,
    added_tokens_of,
    read_vocabulary,
)
from adapters_registry.content.adapter_files import (
    ADDED_TOKENS_FILE,
    COMPANION_FILES,
    OTHER_TOKENIZER_FILES,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)

READ_FILES = tuple(name for name in COMPANION_FILES if name not in OTHER_TOKENIZER_FILES)
MAX_BYTES = dict.fromkeys(READ_FILES, 1 << 20) | {TOKENIZER_FILE: 32 << 20}
_SHOWN = 5

ADDED_TOKENS_REMEDY = (
    "train on the base's own vocabulary, or merge the adapter and serve the result as a base of "
    "its own (`loraplex merge`)"
)


def check_companions(directory: Path, base: Path | None) -> CompanionFindings:
    """Compare what stands beside an adapter's weights with the files in the base's directory."""
    findings = CompanionFindings()
    others = [name for name in COMPANION_FILES if not _is_the_bases(directory / name, base)]
    if not others:
        return findings
    _mention_other_tokenizers(directory, others, findings)
    values = {
        name: _read(directory, name, findings) if name in others else {} for name in READ_FILES
    }
    if findings.reasons:
        return findings
    of_base = {name: _read_base(base, name) for name in READ_FILES}
    vocabulary = read_vocabulary(base)
    _check_tokens(values, vocabulary, findings)
    template, content_format = _check_template(directory, base, values, findings)
    tokens = _own_special_tokens(values, vocabulary.special)
    findings.defaults = ServingDefaults(
        chat_template=hashlib.sha256(template.encode()).hexdigest() if template else "",
        content_format=content_format,
        special_tokens=tokens,
        stop_token_ids=stop_tokens(values, of_base, tokens, vocabulary, findings),
        sampling=sampling_defaults(values, of_base, findings),
    )
    for name in (TOKENIZER_CONFIG_FILE, TOKENIZER_FILE):
        _mention_the_rest(name, values[name], of_base[name], findings)
    return findings


def chat_template_of(directory: Path) -> str:
    """Return the chat template that a directory brings, as Transformers looks for it; or nothing.

    `chat_template.jinja` comes before the entry of `tokenizer_config.json`. Of several named
    templates it is the default one.

    Raises:
        ValueError, OSError: the files can't be read.
    """
    file = directory / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = directory / TOKENIZER_CONFIG_FILE
    if not config.is_file():
        return ""
    return _entry(json.loads(config.read_text(encoding="utf-8")))


def _entry(config: Any) -> str:
    value = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(value, list):
        named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
        value = named.get("default")
    elif isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else ""


def _read(directory: Path, name: str, findings: CompanionFindings) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if the file is missing or unreadable."""
    file = directory / name
    try:
        if not file.is_file():
            return {}
        if (size := file.stat().st_size) > MAX_BYTES[name]:
            raise ValueError(f"it has {size:,} bytes, and may have {MAX_BYTES[name]:,}")
        text = file.read_text(encoding="utf-8")
        value = {} if name == TEMPLATE_FILE else json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        return value
    except (ValueError, RecursionError) as error:
        message = f"{name} can't be read: {error}"
        findings.refuse("companion_unreadable", message[:300], name)
        return {}


def _is_the_bases(file: Path, base: Path | None) -> bool:
    """Return whether a file is missing, or has the same bytes as the base's."""
    if not file.is_file():
        return True
    of_base = base / file.name if base else None
    if of_base is None or not of_base.is_file() or of_base.stat().st_size != file.stat().st_size:
        return False
    return filecmp.cmp(file, of_base, shallow=False)


def _read_base(base: Path | None, name: str) -> dict[str, Any]:
    if base is None or name == TEMPLATE_FILE or not (base / name).is_file():
        return {}
    value = json.loads((base / name).read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _check_tokens(
    values: Mapping[str, dict[str, Any]], vocabulary: Vocabulary, findings: CompanionFindings
) -> None:
    """Check that each token that a file names is the base's, with the same id."""
    for name in (ADDED_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, SPECIAL_TOKENS_FILE):
        strange = dict.fromkeys(
            described
            for text, token_id in added_tokens_of(name, values[name])
            if (described := vocabulary.stranger(text, token_id))
        )
        if strange:
            shown = ", ".join(list(strange)[:_SHOWN])
            more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
            findings.refuse(
                "added_tokens",
                f"{name} has tokens that the base doesn't have: {shown}{more}; "
                f"{ADDED_TOKENS_REMEDY}",
                name,
            )


def _check_template(
    directory: Path,
    base: Path | None,
    values: Mapping[str, dict[str, Any]],
    findings: CompanionFindings,
) -> tuple[str, str]:
    """Return the adapter's own template, if it isn't the base's, and how it takes content."""
    template, config = chat_template_of(directory), values[TOKENIZER_CONFIG_FILE]
    named = config.get("chat_template")
    if isinstance(named, list | dict) and len(named) > 1:
        findings.warnings.append(
            f"{TOKENIZER_CONFIG_FILE} has {len(named)} chat templates: only the default one is used"
        )
    entry = _entry(config)
    if template and entry and template.strip() != entry.strip():
        findings.warnings.append(
            f"{TOKENIZER_CONFIG_FILE} has another chat template than {TEMPLATE_FILE}, which is used"
        )
    of_base = chat_template_of(base) if base else ""
    if not template.strip() or template.strip() == of_base.strip():
        return "", ""
    file = TEMPLATE_FILE if (directory / TEMPLATE_FILE).is_file() else TOKENIZER_CONFIG_FILE
    try:
        with TemplateRenderer() as renderer:
            content_format = renderer.content_format(template)
    except TemplateFailed as error:
        message = f"the chat template in {file} can't be used: {error}"
        findings.refuse("bad_chat_template", message[:400], file)
        return "", ""
    findings.warnings.append(
        f"its own chat template ({file}) is used for its requests: it isn't the base's"
        if content_format
        else f"its own chat template ({file}) is used, and doesn't show what a user says"
    )
    return template, content_format or "string"


def _own_special_tokens(
    values: Mapping[str, dict[str, Any]], of_base: Mapping[str, str]
) -> dict[str, str]:
    def named(files: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        found = dict(special_tokens(files[SPECIAL_TOKENS_FILE]))
        return found | dict(special_tokens(files[TOKENIZER_CONFIG_FILE]))

    return {name: text for name, text in named(values).items() if text != of_base.get(name)}


def _mention_other_tokenizers(
    directory: Path, others: list[str], findings: CompanionFindings
) -> None:
    """Say that a tokenizer isn't read, unless it is there in the form that is."""
    unread = [name for name in others if name in OTHER_TOKENIZER_FILES]
    if unread and not (directory / TOKENIZER_FILE).is_file():
        are = "isn't the base's and isn't" if len(unread) == 1 else "aren't the base's and aren't"
        findings.warnings.append(
            f"{' and '.join(unread)} {are} read: the base's tokenizer is used; if the adapter was "
            f"trained with another one, put its {TOKENIZER_FILE} here, which is compared"
        )


def _mention_the_rest(
    name: str, own: dict[str, Any], known: dict[str, Any], findings: CompanionFindings
) -> None:
    """Say what else differs; the base's own is used."""
    read = {key for key, _ in special_tokens(own)} | {"added_tokens"}
    if rest := sorted(key for key in differing(own, known) if key not in read):
        findings.warnings.append(
            f"{name} differs from the base's, which is used, in {listed(rest)}"
        )
