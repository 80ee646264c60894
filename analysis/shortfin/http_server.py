"""The release's own HTTP server: its command line, and the form of its requests and answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from analysis.shortfin.port import Answer, Setup
from analysis.shortfin.releases import row_of
from analysis.shortfin.service import installed_service
from analysis.shortfin.service.common import cache_settings, model_settings, parameters_of

HOST = "127.0.0.1"
_REFUSED = 503
_FLAGS = {"program_isolation": "isolation"}
"""Names of options on the command line of 3.1 and 3.2, where they differ."""
_TEXT_PREFIX = b"data: "
"""Begins an answer up to 3.3; later ones are JSON."""


def command(setup: Setup, directory: Path, port: int) -> list[str]:
    """Return the command that starts the server of the installed release.

    Writes the model's settings to `directory`. Options that are no setting of the model or its
    cache become options of the command.
    """
    release, _ = installed_service()  # the first import may write to the home directory
    from shortfin_apps.llm.components.config_struct import ModelParams, PagedKVCacheParams

    is_first = row_of(release).service == "v3_1"
    model, config = setup.model.config, setup.config
    of_cache, of_model = parameters_of(PagedKVCacheParams), parameters_of(ModelParams)
    cache, params = cache_settings(setup), model_settings(setup)
    flags: dict[str, Any] = {"device": setup.device}
    if "prefix_sharing_algorithm" in of_cache:  # 3.1
        cache["prefix_sharing_algorithm"] = config.prefix_sharing
    else:
        flags["prefix_sharing_algorithm"] = config.prefix_sharing
    if "kv_cache_dtype" in of_cache:
        cache["kv_cache_dtype"] = model.kv_cache_dtype
    elif model.kv_cache_dtype != "float16":  # the default; 3.1 cannot read it from a file
        params["attn_dtype"] = model.kv_cache_dtype
    if "paged_kv_block_size_elements_per_device" in of_cache:
        cache["paged_kv_block_size_elements_per_device"] = [model.page_elements]
    if "has_prefill_position" in of_model:
        params["has_prefill_position"] = model.has_prefill_position
    for name, value in config.options.items():
        if name in of_cache:
            cache[name] = value
        elif name in of_model:
            params[name] = value
        else:
            flags[_FLAGS.get(name, name) if is_first else name] = value
    file = directory / "model_config.json"
    file.write_text(json.dumps({**params, "paged_kv_cache": cache}))
    words = [
        *("--host", HOST, "--port", port, "--model_config", file, "--vmfb", setup.vmfb),
        *("--tokenizer_json", setup.model.tokenizer_json),
        *("--tokenizer_config_json", setup.model.directory / "tokenizer_config.json"),
        *("--parameters", *setup.model.parameters),
    ]
    if config.device_ids:
        words += ["--device_ids", *config.device_ids]
    for name, value in flags.items():
        if value is not False:
            words += [f"--{name}", *([] if value is True else [value])]
    return [str(word) for word in (sys.executable, "-m", "shortfin_apps.llm.server", *words)]


def body_of(prompt: str, max_new_tokens: int, request_id: str) -> bytes:
    """Return the body of a request to the installed release's server."""
    _, service = installed_service()
    asked = max_new_tokens - service.surplus_tokens
    sampling = {"max_completion_tokens": asked}
    return json.dumps({"text": prompt, "rid": request_id, "sampling_params": sampling}).encode()


def answer_of(status: int, body: bytes) -> Answer:
    """Return the answer in a response of the server. Raises ValueError if there is none."""
    if status != 200:
        text = " ".join(body.decode("utf-8", "replace").split())
        return Answer(refused=status == _REFUSED, error=f"HTTP status {status}: {text[:500]}")
    if body.startswith(_TEXT_PREFIX):
        return Answer(text=body.removeprefix(_TEXT_PREFIX).removesuffix(b"\n\n").decode())
    prompts = json.loads(body)["responses"]
    texts = [answer["text"] for prompt in prompts for answer in prompt["responses"]]
    return Answer(text=texts[0] if texts else "")
