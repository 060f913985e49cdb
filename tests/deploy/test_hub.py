"""Models from the hub: what is fetched, from where, what is used again, and every way in which it goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, try_to_load_from_cache

from deploy.hub_stand_in import Content, Hub, Repo
from diptych import reader
from diptych.deploy import Deployment, arrival, plan, record
from diptych.deploy import hub as ours
from diptych.engine import Engine
from diptych.errors import DiptychError, FileError, InputError, OutputError

NAME = "me/reader-GGUF"
TEXT, MMPROJ = bytes(range(256)) * 2000, b"mmproj" * 50_000
FILES: dict[str, Content] = {
    "reader-Q4_K_M.gguf": TEXT,
    "reader-Q8_0.gguf": TEXT[::-1],
    "mmproj-reader-F16.gguf": MMPROJ,
    "mmproj-reader-Q8_0.gguf": MMPROJ[::-1],
    "imatrix.gguf": b"no" * 1000,
    "README.md": b"read me",
    ".gitattributes": b"*.gguf filter=lfs",
}


@pytest.fixture
def repo(hub: Hub) -> Repo:
    return hub.repo(NAME, FILES)


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def contents(found: Deployment) -> tuple[bytes, bytes | None]:
    return found.text.read_bytes(), found.mmproj.read_bytes() if found.mmproj else None


def half_written() -> list[Path]:
    return list(cache().rglob("*.incomplete"))


def left() -> list[str]:
    """Everything that lies in the caches."""
    return sorted(p.name for folder in (cache(), record.home()) for p in folder.rglob("*") if p.is_file() or p.is_symlink())


# What is fetched


def test_both_halves_are_fetched_into_the_hubs_own_cache(repo: Repo) -> None:
    found = ours.fetch(NAME)
    assert contents(found) == (TEXT, MMPROJ)
    commit = repo.commits[0][0]
    assert found.text == cache() / "models--me--reader-GGUF" / "snapshots" / commit / "reader-Q4_K_M.gguf"
    for name in "reader-Q4_K_M.gguf", "mmproj-reader-F16.gguf":
        assert try_to_load_from_cache(NAME, name, cache_dir=cache()), "other tools find it, by the branch"
        assert try_to_load_from_cache(NAME, name, cache_dir=cache(), revision=commit)
    (seen,) = scan_cache_dir(cache()).repos
    assert (seen.repo_id, seen.nb_files, seen.size_on_disk) == (NAME, 2, len(TEXT) + len(MMPROJ))
    assert not scan_cache_dir(cache()).warnings
    assert not half_written()


def test_other_tools_need_no_second_download(hub: Hub, repo: Repo) -> None:
    found = ours.fetch(NAME)
    sent = hub.sent
    assert Path(hf_hub_download(NAME, "reader-Q4_K_M.gguf", cache_dir=cache())) == found.text
    assert hub.sent == sent


def test_the_branch_that_another_tool_knows_stays_where_it_is(repo: Repo) -> None:
    theirs = hf_hub_download(NAME, "README.md", cache_dir=cache())
    repo.commit({**FILES, "README.md": b"changed"})
    ours.fetch(NAME)
    assert try_to_load_from_cache(NAME, "README.md", cache_dir=cache()) == theirs


def test_what_was_fetched_is_recorded_with_its_commit(repo: Repo) -> None:
    ours.fetch(f"{NAME}:q8_0")
    (found,) = ours.listed()
    assert (found.name, found.quant, found.revision) == (f"{NAME}:Q8_0", "Q8_0", repo.commits[0][0])
    assert (found.text, found.mmproj) == ("reader-Q8_0.gguf", "mmproj-reader-F16.gguf")
    assert found.size == found.here == len(TEXT) + len(MMPROJ)
    assert found.whole
    assert found.when[:4].isdigit()


def test_the_progress_grows_to_the_sum_of_both_files_and_choices_are_told(hub: Hub) -> None:
    hub.repo(NAME, {"a-Q8_0.gguf": TEXT})
    seen: list[tuple[int, int]] = []
    told: list[str] = []
    ours.fetch(NAME, progress=lambda done, total: seen.append((done, total)), tell=told.append)
    assert seen == sorted(seen)
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert told[:2] == [f"{NAME} has no Q4_K_M; taking Q8_0", f"{NAME} has no mmproj; it will answer text alone"]
    assert told[2].startswith(f"downloading {NAME}:Q8_0 at ")
    assert told[2].endswith(": 1 file, 0.5 MB")


def test_all_parts_of_a_split_model_are_fetched_and_the_first_is_named(hub: Hub) -> None:
    parts = {f"x/a-Q4_K_M-0000{i}-of-00003.gguf": bytes([i]) * 2000 for i in (1, 2, 3)}
    hub.repo(NAME, {**parts, "mmproj.gguf": MMPROJ})
    found = ours.fetch(NAME)
    assert found.text.name == "a-Q4_K_M-00001-of-00003.gguf"
    assert [p.read_bytes() for p in sorted(found.text.parent.iterdir())] == list(parts.values())


CONFIG = b"""{  // both halves
  "architectures": ["Qwen2VLForConditionalGeneration"],
  "text_model": {"hidden_size": 256, "model_path": "text.gguf"},
  "vision_model": {"model_path": "mmproj.gguf"}
}"""


def test_a_repository_that_is_a_deployment_is_fetched_as_the_directory_it_is(hub: Hub) -> None:
    config = CONFIG.replace(b"  // both halves", b"")
    files = {"config.json": config, "text.gguf": TEXT, "mmproj.gguf": MMPROJ, "vision/a.onnx": b"onnx" * 999,
             "vision/a.data": b"data" * 999, "model.safetensors": b"no" * 999, ".gitattributes": b"x"}  # fmt: skip
    hub.repo(NAME, files)
    found = ours.fetch(NAME)
    assert contents(found) == (TEXT, MMPROJ)
    folder = found.text.parent
    there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert there == {name: files[name] for name in ("config.json", "text.gguf", "mmproj.gguf", "vision/a.onnx", "vision/a.data")}
    assert [d.name for d in ours.listed()] == [NAME]
    hub.asked.clear()
    assert ours.fetch(NAME) == ours.fetch(NAME, offline=True) == found
    assert not hub.asked


def test_a_deployment_with_comments_is_known_for_one(hub: Hub) -> None:
    hub.repo(NAME, {"config.json": CONFIG, "text.gguf": TEXT, "mmproj.gguf": MMPROJ, "other-Q8_0.gguf": TEXT})
    with pytest.raises(FileError, match=r"is a deployment, and its text half is text-Q4_0\.gguf; leave :Q8_0 away"):
        plan.planned(
            plan.Asked(NAME, "Q8_0", None, cache()),
            plan.Contents("0" * 40, {}, CONFIG.decode().replace('"text.gguf"', '"text-Q4_0.gguf"')),
        )


def test_a_checkpoints_own_config_makes_no_deployment(hub: Hub) -> None:
    hub.repo(NAME, {**FILES, "config.json": b'{"text_model": {"hidden_size": 8}, "vision_config": {}}'})
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


# What is used again


def test_a_second_call_asks_no_network(hub: Hub, repo: Repo) -> None:
    found = ours.fetch(NAME)
    hub.asked.clear()
    assert found == ours.fetch(NAME) == ours.fetch(f"{NAME}:Q4_K_M") == ours.fetch(f"{NAME}:q4_k_m", offline=True)
    assert found == ours.fetch(NAME, revision=repo.commits[0][0])
    assert not hub.asked


def test_a_name_stays_at_its_commit_until_another_is_asked_for(hub: Hub, repo: Repo) -> None:
    old = ours.fetch(NAME)
    repo.commit({**FILES, "reader-Q4_K_M.gguf": b"new" * 1000})
    assert ours.fetch(NAME) == old
    new = ours.fetch(NAME, revision="main")
    assert contents(new) == (b"new" * 1000, MMPROJ)
    assert ours.fetch(NAME) == ours.fetch(NAME, revision="main", offline=True) == new, "the newest that is here"
    assert ours.fetch(NAME, revision=repo.commits[0][0]) == old
    assert [d.revision for d in ours.listed()] == [c for c, _ in repo.commits[::-1]]


def test_a_tag_and_an_older_commit_can_be_fetched(repo: Repo) -> None:
    first = repo.commits[0][0]
    repo.tags["v1.0"] = first
    repo.commit({"other-Q4_K_M.gguf": TEXT})
    assert ours.fetch(NAME, revision="v1.0").text.parent.name == first
    assert ours.fetch(NAME, revision="v1.0", offline=True).text.parent.name == first


def test_files_two_models_share_are_fetched_once(hub: Hub, repo: Repo) -> None:
    ours.fetch(NAME)
    sent = hub.sent
    ours.fetch(f"{NAME}:Q8_0")
    assert hub.sent - sent == len(TEXT)


def test_what_another_tool_fetched_is_used(hub: Hub, repo: Repo) -> None:
    theirs = hf_hub_download(NAME, "reader-Q4_K_M.gguf", cache_dir=cache())
    sent = hub.sent
    assert ours.fetch(NAME).text == Path(theirs)
    assert hub.sent - sent == len(MMPROJ)


def test_offline_what_another_tool_fetched_is_enough(hub: Hub, repo: Repo) -> None:
    for name in "reader-Q8_0.gguf", "mmproj-reader-Q8_0.gguf":
        hf_hub_download(NAME, name, cache_dir=cache())
    hub.asked.clear()
    assert contents(ours.fetch(NAME, offline=True)) == (TEXT[::-1], MMPROJ[::-1])
    assert not hub.asked
    assert not ours.listed(), "it was not Diptych that downloaded it"
    with pytest.raises(FileError, match=r"offline, in .*: me/reader-GGUF has no Q4_K_M; it has Q8_0"):
        ours.fetch(f"{NAME}:Q4_K_M", offline=True)


@pytest.mark.parametrize("variable", ["DIPTYCH_OFFLINE", "HF_HUB_OFFLINE", None])
def test_offline_and_not_there_is_told_without_asking(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(FileError, match=r"me/reader-GGUF:Q8_0 is not in .*, and this is offline; run it once without"):
        ours.fetch(f"{NAME}:Q8_0", offline=variable is None)
    assert not hub.asked


@pytest.mark.parametrize("loss", ["gone", "short"])
def test_a_file_that_was_lost_is_fetched_again_at_the_same_commit(repo: Repo, loss: str) -> None:
    found = ours.fetch(NAME)
    blob = found.text.resolve()
    if loss == "gone":
        blob.unlink()
    else:
        blob.write_bytes(TEXT[:100])
    repo.commit({"reader-Q4_K_M.gguf": b"other" * 1000})
    with pytest.raises(FileError, match="is not here whole, and this is offline"):
        ours.fetch(NAME, offline=True)
    assert ours.fetch(NAME) == found
    assert contents(found) == (TEXT, MMPROJ)


def test_another_home_of_the_hub_is_another_cache(hub: Hub, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert ours.fetch(NAME).text.is_relative_to(tmp_path / "elsewhere")
    assert len(ours.listed()) == 2


def test_the_engine_takes_a_name_of_the_hub(hub: Hub) -> None:
    hub.repo(NAME, {"a-Q8_0.gguf": reader.FOLDER / "text.gguf", "mmproj.gguf": reader.FOLDER / "mmproj.gguf"})
    with Engine.load(hf=f"{NAME}:Q8_0") as engine:
        assert engine.ask("Read the text.", [reader.examples()[0]], max_tokens=4)
    with Engine.load(ours.fetch(NAME)) as engine:
        assert engine.ask("Read the text.", [reader.examples()[0]], max_tokens=4)
    for wrong in {"deployment": "reader", "hf": NAME}, {"model": Path("x"), "hf": NAME}:
        with pytest.raises(InputError, match="three ways"):
            Engine.load(**wrong)  # type: ignore[arg-type]


# Broken lines


def test_a_line_that_breaks_is_taken_up_where_it_broke(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.cut_after = 100_000
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)
    ranges = [r for method, path, r in hub.asked if path.startswith("/cdn/")]
    assert ranges == [None, *(f"bytes={i}00000-" for i in (1, 2, 3, 4, 5)), None, "bytes=100000-", "bytes=200000-"]
    assert hub.sent == len(TEXT) + len(MMPROJ)


def test_an_interrupted_download_goes_on_in_the_next_process(hub: Hub, repo: Repo) -> None:
    hub.faults.slow = 0.05
    code = f"from diptych.deploy import hub; hub.fetch({NAME!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ.copy())
    wait_for(lambda: hub.sent > 200_000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = half_written()
    arrived = part.stat().st_size
    assert 0 < arrived < len(TEXT)
    (found,) = ours.listed()
    assert (found.complete, found.whole, found.here) == (False, False, arrived)
    assert not try_to_load_from_cache(NAME, "reader-Q4_K_M.gguf", cache_dir=cache()), "nobody takes it for whole"
    with pytest.raises(FileError, match="is not here whole, and this is offline"):
        ours.fetch(NAME, offline=True)
    hub.faults.slow = 0.0
    hub.asked.clear()
    repo.commit({"reader-Q4_K_M.gguf": b"other" * 1000})  # and meanwhile the branch went on
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)
    assert [r for _, path, r in hub.asked if path.startswith("/cdn/")] == [f"bytes={arrived}-", None]
    assert not half_written()
    assert ours.listed()[0].whole


def test_two_processes_fetch_a_file_once(hub: Hub, repo: Repo) -> None:
    hub.faults.slow = 0.02
    command = [sys.executable, "-c", f"from diptych.deploy import hub; hub.fetch({NAME!r})"]
    both = [subprocess.Popen(command, env=os.environ.copy()) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert hub.sent == len(TEXT) + len(MMPROJ)
    assert contents(ours.fetch(NAME, offline=True)) == (TEXT, MMPROJ)


def wait_for(there: Callable[[], bool]) -> None:
    for _ in range(1000):
        if there():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 20 seconds")


def test_a_server_without_ranges_begins_again(hub: Hub, repo: Repo) -> None:
    hub.faults.cut_after, hub.faults.cuts, hub.faults.no_range = 100_000, 1, True
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_a_line_that_brings_nothing_more_is_given_up_and_what_came_is_kept(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.cut_after, hub.faults.no_range = 50_000, True
    with pytest.raises(FileError, match=r"cannot get me/reader-GGUF from http://127.*run it again, and it goes on$"):
        ours.fetch(NAME)
    assert len([path for _, path, _ in hub.asked if path.startswith("/cdn/")]) == 1 + arrival.ATTEMPTS
    assert half_written()[0].stat().st_size == 50_000
    hub.faults.cut_after = None
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_damage_on_the_way_is_noticed_and_thrown_away(hub: Hub, repo: Repo) -> None:
    hub.faults.damage = True
    with pytest.raises(FileError, match="did not arrive as the hub announced it, and was thrown away; run it again"):
        ours.fetch(NAME)
    assert left() == [], "neither a file, nor a link, nor a record of it"
    hub.faults.damage = False
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_a_part_that_belongs_to_nothing_is_noticed(repo: Repo) -> None:
    blobs = cache() / "models--me--reader-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    part = record.partial(blobs, hashlib.sha256(TEXT).hexdigest())
    part.write_bytes(b"x" * 1000)
    with pytest.raises(FileError, match="thrown away"):
        ours.fetch(NAME)
    assert not part.exists()
    blobs.mkdir(parents=True)
    part.write_bytes(b"x" * (len(TEXT) + 1))
    with pytest.raises(FileError, match="thrown away"):
        ours.fetch(NAME)
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_small_files_are_checked_too(hub: Hub) -> None:
    hub.repo(NAME, {"config.json": CONFIG.replace(b"  // both halves", b""), "text.gguf": b"small", "mmproj.gguf": b"too"})
    assert contents(ours.fetch(NAME)) == (b"small", b"too")
    blob = ours.fetch(NAME).text.resolve()
    assert blob.name == hashlib.sha1(b"blob 5\0small").hexdigest()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: Hub, repo: Repo, status: int) -> None:
    hub.faults.body_status, hub.faults.statuses = status, arrival.ATTEMPTS - 1
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


# What the hub refuses


def refused(match: str, name: str = NAME, error: type[DiptychError] = FileError, **asked: Any) -> None:
    """The call fails in one line, and leaves nothing behind."""
    before = left()
    with pytest.raises(error, match=match) as raised:
        ours.fetch(name, **asked)
    assert "\n" not in str(raised.value)
    assert left() == before


def test_a_repository_that_is_not_there_is_told(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(r"^http://127.* has no me/nothing for you \(401\); check the name, or set HF_TOKEN", "me/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    refused(r"^http://127.* has no me/nothing for you \(404\)", "me/nothing")


def test_a_private_repository_takes_the_token_and_the_other_host_never_sees_it(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.token = "hf_mine"
    refused(r"has no me/reader-GGUF for you \(401\).*HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    ours.fetch(NAME)
    assert hub.tokens[-1] == "Bearer hf_mine"
    assert set(hub.cdn_tokens) == {None}


def test_a_gated_repository_says_where_to_agree(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.gated = True
    refused(r"me/reader-GGUF is gated: agree to its terms at http://127.*/me/reader-GGUF, and set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)


def test_a_revision_that_is_not_there_is_told(repo: Repo) -> None:
    refused("me/reader-GGUF has no revision v9; name a branch", revision="v9")


def test_a_quantisation_that_is_not_there_is_answered_with_those_that_are(repo: Repo) -> None:
    refused(r"^me/reader-GGUF has no Q2_K; it has Q4_K_M, Q8_0$", f"{NAME}:q2_k")


def test_a_checkpoint_is_told_to_be_converted(hub: Hub) -> None:
    hub.repo("me/checkpoint", {"model.safetensors": b"x" * 5000, "config.json": b"{}"})
    refused("holds a checkpoint and no GGUF; get it with .*diptych convert", "me/checkpoint")


@pytest.mark.parametrize("status", [403, 418, 500])
def test_a_server_that_is_not_well_is_told_with_its_status(hub: Hub, repo: Repo, status: int) -> None:
    hub.faults.status = status
    refused(str(status))


def test_a_server_that_is_not_there_is_told(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(r"cannot get me/reader-GGUF from http://127\.0\.0\.1:9: .*refused; check the network")
    monkeypatch.setattr(constants, "ENDPOINT", "nonsense")
    refused("cannot get me/reader-GGUF from nonsense")


@pytest.mark.parametrize(
    "answer",
    [b"<html>log in to this network</html>", b"[]", b"{}", b'"x"', b'{"id": "x", "sha": "../../x", "siblings": []}',
     b'{"id": "x", "sha": null, "siblings": [{"rfilename": 3}]}'],
)  # fmt: skip
def test_an_answer_that_is_no_hubs_is_told(hub: Hub, repo: Repo, answer: bytes) -> None:
    hub.faults.garbage = answer
    refused("gave an answer that is no hub's .*check HF_ENDPOINT")


def test_file_names_that_lead_out_of_the_repository_are_not_followed(hub: Hub, tmp_path: Path) -> None:
    blob = {"size": 5, "blobId": "0" * 40}
    bad = ("../../a-Q4_K_M.gguf", "/tmp/a-Q4_K_M.gguf", "..\\a-Q4_K_M.gguf", "C:/a-Q4_K_M.gguf", "x//a-Q4_K_M.gguf")
    siblings = [{"rfilename": name, **blob} for name in bad]
    siblings += [{"rfilename": "b-Q8_0.gguf", "size": 5, "blobId": "../../x"}, {"rfilename": "c-Q8_0.gguf", "size": "5"}]
    hub.faults.garbage = json.dumps({"id": NAME, "sha": "1" * 40, "siblings": siblings}).encode()
    hub.repo(NAME, {})
    refused("no text half as GGUF; it holds nothing")


@pytest.mark.parametrize(
    "name", ["", "reader", "me/", "/me", "a/b/c", "me/reader:", "me/../x", "me/reader:../x.gguf", "me/re ader", "me/a:b\n", "https://x/y"]
)  # fmt: skip
def test_what_is_no_name_is_told_the_form_of_one(hub: Hub, name: str) -> None:
    refused("is no model of the hub; write USER/REPO or USER/REPO:QUANT", name, InputError)
    assert not hub.asked


@pytest.mark.parametrize("revision", ["../main", "", "a\nb", "/etc"])
def test_what_is_no_revision_is_refused(hub: Hub, revision: str) -> None:
    refused("is no revision", NAME, InputError, revision=revision)
    assert not hub.asked


# Disks


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))(1000, 0, 1000)
    monkeypatch.setattr(ours.shutil, "disk_usage", lambda path: usage)
    refused(r"me/reader-GGUF:Q4_K_M needs 0.8 MB more in .*, and 0.0 MB are free; free some space", error=OutputError)


def test_a_disk_that_fills_on_the_way_is_told_and_what_came_is_kept(hub: Hub, repo: Repo) -> None:
    code = f"""
import resource, signal
from diptych.deploy import hub
from diptych.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    hub.fetch({NAME!r})
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write me/reader-GGUF to "), done.stdout + done.stderr
    assert "File too large; what arrived is kept, free some space" in done.stdout
    arrived = half_written()[0].stat().st_size
    assert 0 < arrived <= 200_000
    assert contents(ours.fetch(NAME)) == (TEXT, MMPROJ)
    assert f"bytes={arrived}-" in [r for _, _, r in hub.asked]


def test_a_cache_that_cannot_be_written_is_told(repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(OutputError, match=r"cannot write .*; set HF_HOME and DIPTYCH_HOME to where you may"):
        ours.fetch(NAME)


def test_a_system_without_links_gets_the_files_themselves(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    found = ours.fetch(NAME)
    assert contents(found) == (TEXT, MMPROJ)
    assert not found.text.is_symlink()
    assert not list((found.text.parent.parent.parent / "blobs").iterdir())
    assert ours.remove(ours.listed()[0]).size == len(TEXT) + len(MMPROJ)
    assert left() == []


def test_a_file_too_large_for_plain_http_is_left_to_the_library(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_HTTP_LIMIT", len(MMPROJ))
    found = ours.fetch(NAME)
    assert contents(found) == (TEXT, MMPROJ)
    assert found.text.is_symlink()
    assert ours.listed()[0].whole
