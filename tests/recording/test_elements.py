"""Numbers of every type that keys and values come in: read, written, and found to be none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import NEWEST, REPORTED, ChildRunner

from analysis.core.errors import EngineError
from analysis.model import elements

# Bits and what they stand for, after the formats' own definitions.
KNOWN = {
    "float16": {0x3C00: 1.0, 0xC000: -2.0, 0x7BFF: 65504.0, 0x0001: 2.0**-24, 0x7C00: np.inf},
    "bfloat16": {0x3F80: 1.0, 0xC000: -2.0, 0x7F7F: 3.3895313892515355e38, 0x0001: 2.0**-133},
    "float32": {0x3F800000: 1.0, 0xC0000000: -2.0, 0x00000001: 2.0**-149},
    "float8_e4m3fn": {0x38: 1.0, 0xC0: -2.0, 0x7E: 448.0, 0x01: 2.0**-9, 0x08: 2.0**-6},
    "float8_e4m3fnuz": {0x40: 1.0, 0xC8: -2.0, 0x7F: 240.0, 0x01: 2.0**-10, 0x08: 2.0**-7},
}
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1}


@pytest.mark.parametrize("dtype", KNOWN)
def test_known_bits_are_read_and_written(dtype: str) -> None:
    for bits, value in KNOWN[dtype].items():
        data = bits.to_bytes(BYTES[dtype], "little")
        assert elements.decode(data, dtype).tolist() == [value]
        if np.isfinite(value):
            assert elements.encode(value, dtype).tobytes() == data
    assert np.isnan(elements.decode(elements.encode(np.nan, dtype).tobytes(), dtype)).all()
    for bits in elements.NANS[dtype]:
        assert np.isnan(elements.decode(bits.to_bytes(BYTES[dtype], "little"), dtype)).all()
    words = elements.nans_in_words(dtype)
    assert np.isnan(elements.decode(words.tobytes(), dtype)).all()
    assert len(words) == len(elements.NANS[dtype])


@pytest.mark.parametrize("dtype", [name for name, count in BYTES.items() if count < 4])
def test_every_number_is_written_as_it_was_read(dtype: str) -> None:
    every = np.arange(256 ** BYTES[dtype]).astype("<u2" if BYTES[dtype] == 2 else "u1")
    values = elements.decode(every.tobytes(), dtype)
    for value in values[np.isfinite(values)][:: 97 if BYTES[dtype] == 2 else 1].tolist():
        again = elements.encode(value, dtype)
        assert elements.decode(again.tobytes(), dtype).tolist() == [value]


@given(st.floats(-400, 400), st.sampled_from([("bfloat16", 8), ("float8_e4m3fn", 4)]))
def test_the_nearest_number_is_written(value: float, kind: tuple[str, int]) -> None:
    dtype, digits = kind
    found = float(elements.decode(elements.encode(value, dtype).tobytes(), dtype)[0])
    assert abs(found - value) <= max(abs(value) * 2.0**-digits, 2.0**-10)


@pytest.mark.parametrize("dtype", ["int8", "float64", "nonsense"])
def test_other_types_are_refused_in_a_sentence(dtype: str) -> None:
    with pytest.raises(
        EngineError, match=rf"of the type {dtype} cannot be read\. Export .*float16"
    ):
        elements.decode(bytes(8), dtype)


def test_page_tables_of_every_type_of_a_release_are_read(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        import dataclasses, time
        import shortfin.array as sfnp
        from shortfin_apps.llm.components.kvcache import page_pool
        from analysis.shortfin.standalone import StandaloneEngine, StandaloneSystem
        from analysis.core.errors import EngineError
        from analysis.treatments.pages import fill_page, page_digest

        system, read = StandaloneSystem(), {}
        names = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e4m3fnuz", "int8"]
        names = [name for name in names if hasattr(sfnp, name)]
        for name in names:
            cache = system.cache("none", 4, 4)
            pool = cache.page_pool
            config = dataclasses.replace(pool.config, dtype=getattr(sfnp, name))
            device = system._fiber.device(0)
            try:
                made = page_pool.PagePool(devices=[device], config=config)
            except ValueError as error:  # a release that fills it with zeros may not be able to
                read[name] = str(error)
                continue
            pool.page_tables = made.page_tables
            probe = StandaloneEngine(system, cache, EngineConfig()).service.probe()
            try:
                for _ in range(50):
                    fill_page(pool, 1, -1.5)
                    fill_page(pool, 2, float("nan"))
                    time.sleep(0.01)  # a release's own zeros may arrive only now
                    held = probe.contents([1, 2])
                    if held[1].mean == -1.5 and held[2].nan_count:
                        break
                read[name] = [probe.elements(1).tolist(), held[1].mean, held[2].nan_count,
                              page_digest(pool, 1) == page_digest(pool, 2)]
            except EngineError as error:
                read[name] = str(error)
        system.close()
        refused = []
        for name in ("int7", "zeros"):  # one that is not there, and one that is no type
            try:
                Engine(EngineConfig(options={"attn_dtype": name})).start()
            except EngineError as error:
                refused.append(str(error))
        say([names, read, refused])
        """,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names, read, refused = done.reply
    assert set(read) == set(names)
    assert "of the type int8 cannot be read" in read.pop("int8")
    assert set(read) >= {"float16", "bfloat16", "float32"}
    if release in (REPORTED, NEWEST):
        assert ("float8_e4m3fnuz" in read) == (release == NEWEST)
    if release not in (REPORTED, NEWEST):  # those can make them all
        read = {n: r for n, r in read.items() if "Cannot access items" not in str(r)}
        assert set(read) >= {"float16", "float32"}
    for dtype, reply in read.items():
        assert reply == [[-1.5] * 8, -1.5, 8, False], dtype
    assert "no type 'int7'" in refused[0]
    assert "no type 'zeros'" in refused[1]
