"""Media that were seen before: nothing is decoded, preprocessed or encoded twice, and ids are never bound anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from asking import Load, joined, outputs, png, request, tokens

from diptych.engine import Engine
from diptych.engine.catalogue import Catalogue
from diptych.errors import ReboundMedia, UnknownMedia
from diptych.types import MediaSettings, Message, Request, Source


def named(text: str, name: str, data: bytes | None = None, scope: str = "", url: str | None = None) -> Request:
    wanted = request(text)
    return replace(wanted, messages=(Message("user", (Source("image", data, url, name), text)),), scope=scope)


def counting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the engine preprocesses."""
    half, made = engine._half, []
    assert half is not None
    preprocess = half.preprocess

    def noting(*given: object) -> object:
        made.append(1)
        return preprocess(*given)

    monkeypatch.setattr(half, "preprocess", noting)
    return made


def test_the_same_picture_elsewhere_is_not_encoded_again(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    made = counting(engine, monkeypatch)
    tokens(engine, request(png(0), "what"))
    wanted = request("in the user", png(0), "the")
    found = outputs(engine, wanted)
    assert joined(found) == tokens(load(), wanted)
    assert (len(made), engine.stats().encoder.runs) == (1, 1)
    assert [use.origin for use in found[-1].media] == ["cache"]
    assert found[-1].timings.encode_ms == 0


def test_with_the_cache_off_it_is_encoded_again(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(encode_cache_mib=0)
    made = counting(engine, monkeypatch)
    tokens(engine, request(png(0), "what"))
    found = outputs(engine, request("in the user", png(0), "the"))
    assert (len(made), engine.stats().encoder.runs) == (2, 2)
    assert [use.origin for use in found[-1].media] == ["encoder"]


def test_what_the_kv_cache_holds_is_said_to_come_from_there(engine: Engine) -> None:
    tokens(engine, request(png(0), "what"))
    last = outputs(engine, request(png(0), "what else"))[-1]
    assert [use.origin for use in last.media] == ["kv"]
    assert last.usage.cached_tokens > 12


def test_an_item_that_was_sent_with_an_id_may_be_sent_by_the_id_alone(engine: Engine, load: Load) -> None:
    tokens(engine, named("what", "a", png(0)))
    found = tokens(engine, named("the user", "a"))
    assert found == tokens(load(), request(png(0), "the user"))
    assert engine.stats().encoder.runs == 1


def test_an_id_that_is_not_known_or_of_another_scope_is_refused(engine: Engine) -> None:
    tokens(engine, named("what", "a", png(0), scope="one"))
    assert tokens(engine, named("what", "a", scope="one"))
    for wanted in (named("what", "a", scope="two"), named("what", "b", scope="one")):
        with pytest.raises(UnknownMedia, match="is not known; send the item again"):
            outputs(engine, wanted)
    assert tokens(engine, named("what", "a", png(1), scope="two")) != tokens(engine, named("what", "a", scope="one"))


def test_an_id_never_stands_for_other_content(engine: Engine) -> None:
    first = tokens(engine, named("what", "a", png(0)))
    with pytest.raises(ReboundMedia):
        outputs(engine, named("what", "a", png(1)))
    assert tokens(engine, named("what", "a")) == first == tokens(engine, named("what", "a", png(0)))


def test_an_id_whose_rows_are_gone_asks_for_the_data_again(load: Load) -> None:
    engine = load(encode_cache_mib=0)
    tokens(engine, named("what", "a", png(0)))
    with pytest.raises(UnknownMedia, match="no longer cached"):
        outputs(engine, named("the user", "a"))
    assert tokens(engine, named("the user", "a", png(0)))


def test_other_limits_of_size_are_another_item(engine: Engine) -> None:
    tokens(engine, named("what", "a", png(0, 280, 280)))
    small = MediaSettings(max_pixels=112 * 112)
    with pytest.raises(UnknownMedia, match="not with these limits"):
        outputs(engine, replace(named("what", "a"), media=small))
    last = outputs(engine, replace(named("what", "a", png(0, 280, 280)), media=small))[-1]
    assert last.usage.media_tokens == 16


def test_an_address_with_an_id_is_fetched_once(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    path.write_bytes(png(0))
    first = tokens(engine, named("what", "a", url=str(path)))
    path.write_bytes(png(1))
    assert tokens(engine, named("what", "a", url=str(path))) == first
    with pytest.raises(ReboundMedia):
        outputs(engine, named("what", "a", url=path.as_uri()))  # another address, so it is looked at


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.engine.catalogue._MOST", 3)
    catalogue = Catalogue(lambda _: None)
    for i in range(9):
        catalogue.bind("", Source("image", b"%d" % i, id=str(i)), b"%d" % i)
        catalogue.keep(b"%d" % i, MediaSettings(), [])
    assert list(catalogue._ids) == [("", "6"), ("", "7"), ("", "8")]
    assert len(catalogue._chunks) == 3
