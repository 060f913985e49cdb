"""Models from the hub: what is fetched, from where, and what the hub refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, try_to_load_from_cache

from diptych.errors import FileError, InputError
from diptych.hub import download as ours
from diptych.hub import plan
from hub.repository import FILES, MMPROJ, NAME, TEXT, cache, contents, half_written, refused
from hub.stand_in import Hub, Repo


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
