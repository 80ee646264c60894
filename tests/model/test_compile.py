"""Compiling: what is selected, what the cache is keyed by, and what failures say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from support import CHILD_ENVIRONMENT, wait_for

from analysis.core.errors import ModelError
from analysis.model import compile as compiling
from analysis.model.artifacts import load_model
from analysis.model.compile import cache_key, compile_model, select_functions, target_flags

HERE = Path("model.mlir")
TINY = """module @module {
  util.global private @weight = 1 : i32
  func.func @prefill_bs1(%arg0: tensor<1xf32>) -> tensor<1xf32> {
    return %arg0 : tensor<1xf32>
  }
  func.func @decode_bs1(%arg0: tensor<1xf32>) -> tensor<1xf32> {
    return %arg0 : tensor<1xf32>
  }
}
"""


def test_only_the_named_functions_stay():
    text = select_functions(TINY, ["decode_bs1"], HERE)
    assert "@decode_bs1" in text
    assert "@prefill_bs1" not in text
    assert "@weight" in text
    assert text.endswith("  }\n}\n")
    assert select_functions(TINY, ["prefill_bs1", "decode_bs1"], HERE) == TINY


def test_a_function_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"does not export decode_bs4; it exports decode"):
        select_functions(TINY, ["decode_bs1", "decode_bs4"], HERE)


def test_the_key_follows_program_flags_compiler_and_host(monkeypatch):
    host, gpu = target_flags("llvm-cpu"), target_flags("gfx942")
    first = cache_key(TINY, host)
    assert cache_key(TINY, host) == first
    assert cache_key(TINY + " ", host) != first
    assert cache_key(TINY, gpu) != first
    before = cache_key(TINY, gpu)
    monkeypatch.setattr(compiling, "_host_cpu", lambda: "another CPU")
    assert cache_key(TINY, host) != first
    assert cache_key(TINY, gpu) == before
    monkeypatch.setattr(compiling, "_compiler_version", lambda: "9.9.9")
    assert cache_key(TINY, gpu) != before


def test_targets():
    assert "--iree-hip-target=gfx1100" in target_flags("hip:gfx1100")
    assert target_flags("hip:gfx942") == target_flags("gfx942")
    for target in ("cuda", "gfx", "gfx942; rm"):
        with pytest.raises(ModelError, match="There is no target"):
            target_flags(target)


def test_a_batch_size_that_was_not_exported(model):
    with pytest.raises(ModelError, match="no batch size 3; it was exported for 1, 2, 4, 8"):
        compile_model(model, batch_sizes=[3, 4])


def test_a_users_vmfb_is_used_as_it_is(copy):
    (copy / "theirs.vmfb").write_bytes(b"compiled")
    assert compile_model(load_model(copy)) == (copy / "theirs.vmfb").resolve()


def tiny(copy: Path, text: str = TINY):
    (copy / "model.mlir").write_text(text)
    return load_model(copy)


def test_the_compilers_last_lines_are_kept(copy, tmp_path):
    model = tiny(copy, TINY.replace("return %arg0", "return %nothing"))
    with pytest.raises(ModelError, match=r"(?s)exit status 1.*undeclared SSA value"):
        compile_model(model, batch_sizes=[1], cache_dir=tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix == ".vmfb"]


def test_a_compiler_that_takes_too_long_is_stopped(copy, tmp_path, monkeypatch):
    slow = tmp_path / "iree-compile"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(compiling, "_compiler", lambda: str(slow))
    with pytest.raises(ModelError, match=r"longer than 0.2 s"):
        compile_model(tiny(copy), batch_sizes=[1], cache_dir=tmp_path / "c", timeout_s=0.2)


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A compiler that notes each call and takes a moment."""
    calls = tmp_path / "calls"
    calls.touch()
    fake = tmp_path / "iree-compile"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import sys, time\n"
        f"open({str(calls)!r}, 'a').write('call\\n')\n"
        "time.sleep(0.3)\n"
        "open(sys.argv[-1], 'w').write('compiled')\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(compiling, "_compiler", lambda: str(fake))
    return calls


def test_two_at_once_compile_once_and_leave_nothing_behind(copy, tmp_path, counted):
    model, cache = tiny(copy), tmp_path / "cache"
    made: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: made.append(compile_model(model, batch_sizes=[1], cache_dir=cache))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 4
    assert len(set(made)) == 1
    assert made[0].read_text() == "compiled"
    assert counted.read_text() == "call\n"
    left = {file for file in cache.iterdir() if not file.name.endswith(".lock")}
    assert left == {made[0], made[0].with_suffix(".sha256")}


def test_the_cache_is_where_the_environment_says(copy, tmp_path, counted, monkeypatch):
    monkeypatch.setenv("CACHELAB_CACHE_DIR", str(tmp_path / "elsewhere"))
    made = compile_model(tiny(copy), batch_sizes=[1])
    assert made.parent == tmp_path / "elsewhere" / "vmfb"


def test_a_cache_that_cannot_be_written(copy, tmp_path, counted):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ModelError, match="CACHELAB_CACHE_DIR"):
        compile_model(tiny(copy), batch_sizes=[1], cache_dir=blocked / "cache")


@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_it_compiles_for_amd_gpus_without_one(model, target, tmp_path):
    made = compile_model(model, batch_sizes=[1], target=target, cache_dir=tmp_path)
    assert made.stat().st_size > 10_000


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, analysis.model\n"
        "from analysis.model.artifacts import load_model\n"
        "from analysis.model.compile import compile_model\n"
        "assert not {'torch', 'iree', 'shortfin', 'tokenizers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ.copy())


def test_a_cached_program_that_is_not_whole_is_compiled_anew(copy, tmp_path, counted):
    model, cache = tiny(copy), tmp_path / "cache"
    made = compile_model(model, batch_sizes=[1], cache_dir=cache)
    for number, damage in enumerate(
        (
            lambda: made.write_text("comp"),
            lambda: made.with_suffix(".sha256").unlink(),
            lambda: made.unlink(),
        )
    ):
        damage()
        assert compile_model(model, batch_sizes=[1], cache_dir=cache) == made
        assert made.read_text() == "compiled"
        assert counted.read_text() == "call\n" * (number + 2)
    compile_model(model, batch_sizes=[1], cache_dir=cache)
    assert counted.read_text() == "call\n" * 4


_COMPILE = """
import sys
from pathlib import Path
from analysis.model.artifacts import load_model
from analysis.model.compile import compile_model
from analysis.model import compile
compile._compiler = lambda: sys.argv[2]
compile_model(load_model(Path(sys.argv[1])), batch_sizes=[1], cache_dir=Path(sys.argv[3]))
"""


def test_a_killed_build_leaves_no_compiler_and_its_folder_not_for_long(copy, tmp_path, counted):
    tiny(copy)
    output, cache = tmp_path / "compiler", tmp_path / "cache"
    slow = tmp_path / "slow"
    slow.write_text(
        f"#!/bin/sh\necho $$ > {output}.tmp; mv {output}.tmp {output}\nexec sleep 1000\n"
    )
    slow.chmod(0o755)
    build = subprocess.Popen(
        [sys.executable, "-c", _COMPILE, str(copy), str(slow), str(cache)], env=CHILD_ENVIRONMENT
    )
    wait_for(output.is_file, "the compiler")
    compiler = psutil.Process(int(output.read_text()))
    build.kill()
    build.wait(60)
    wait_for(lambda: not compiler.is_running(), "the compiler's end")
    assert list(cache.glob(".compiling-*"))
    compile_model(load_model(copy), batch_sizes=[1], cache_dir=cache)
    assert not list(cache.glob(".compiling-*"))
