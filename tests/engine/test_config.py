"""Settings of an engine, the device it gets, and the releases that are supported."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from analysis.core.errors import EngineError
from analysis.engine import EngineConfig
from analysis.shortfin import devices
from analysis.shortfin.releases import supported
from analysis.shortfin.service import service_of


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"page_count": 0}, "pages"),
        ({"page_count": 10**9}, "pages"),
        ({"prefix_sharing": "radix"}, "radix"),
        ({"device": "cuda"}, "cuda"),
        ({"batch_sizes": ()}, "Batch sizes"),
        ({"batch_sizes": (4, 2)}, "ascend"),
        ({"batch_sizes": (0,)}, "from 1 to 1024"),
        ({"batch_sizes": (10**9,)}, "from 1 to 1024, as each batch size is compiled"),
        ({"batch_sizes": (10**5000,)}, "not a value of type int"),
        ({"options": {"a": json.loads("[" * 20 + "]" * 20)}}, "levels deep"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], word: str) -> None:
    with pytest.raises(EngineError, match=word):
        EngineConfig(**settings)  # type: ignore[arg-type]


def test_a_config_survives_json() -> None:
    config = EngineConfig(model=Path("/m"), batch_sizes=(2, 4), options={"top_k": 3})
    plain = json.loads(json.dumps(asdict(config), default=str))
    assert EngineConfig.from_json(plain) == config
    with pytest.raises(EngineError, match="pagecount"):
        EngineConfig.from_json({"pagecount": 3})


def test_an_unknown_release_names_those_that_are_known() -> None:
    with pytest.raises(EngineError, match=", ".join(supported())):
        service_of("2.9.0")


def test_gfx_targets_are_read_from_the_kernel_drivers_topology(tmp_path: Path) -> None:
    for node, version in enumerate(["0", "90402", "110000", "90010"]):
        (tmp_path / str(node)).mkdir()
        (tmp_path / str(node) / "properties").write_text(
            f"cpu_cores_count 1\ngfx_target_version {version}\n"
        )
    assert devices.gfx_targets(tmp_path) == ["gfx942", "gfx1100", "gfx90a"]


def test_amdgpu_without_a_hip_runtime_is_one_sentence() -> None:
    if devices.hip_runtime_found():
        pytest.skip("this machine has a HIP runtime")
    assert devices.resolve("auto", None) == ("local-task", "llvm-cpu")
    with pytest.raises(EngineError, match="HIP runtime"):
        devices.resolve("amdgpu", "gfx942")
