"""Sampling, scoring and describing."""

import json

import numpy
import pyarrow.parquet as parquet
import pytest
import torch
from conftest import REFERENCE, TINY, ragged_trees, tiny_model, write_parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from fspo_trainer import sample as sampling
from fspo_trainer.bpe import END_OF_TEXT, learn_bpe
from fspo_trainer.sample import choose
from fspo_trainer.seeds import Random, canonical_json, seed_of
from fspo_trainer.tokens import learn_tokens, open_tokens

ROWS = REFERENCE["rows"]


@pytest.fixture
def draw(engine, tmp_path):
    def run(rows, **changes):
        out = tmp_path / "samples.parquet"
        spec = {
            "v": 1,
            "command": "sample",
            "checkpoint": str(TINY),
            "data": [write_parquet(tmp_path / "ask.parquet", rows)],
            "out": str(out),
            "temperature": 1,
            "maxNewTokens": 12,
            "seed": 5,
            **changes,
        }
        run.events = engine(spec)
        return parquet.read_table(out).to_pylist()

    return run


def test_greedy_answers_are_those_of_generate_token_for_token(draw):
    samples = draw(ROWS, temperature=0, maxNewTokens=40)
    model = AutoModelForCausalLM.from_pretrained(TINY)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    special = sorted(tokenizer.added_tokens_decoder)
    for row, found in zip(ROWS, samples):
        ids = tokenizer(row["prefix"])["input_ids"] + tokenizer(row["query"])["input_ids"]
        prompt = torch.tensor([[int(one) for one in ids]])
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=special,
            pad_token_id=0,
            begin_suppress_tokens=special,
        )[0, prompt.shape[1] :].tolist()
        assert found["tokens"] == len(theirs)
        kept = theirs[:-1] if theirs[-1] in special else theirs
        assert found["text"] == tokenizer.decode(kept)


@pytest.mark.parametrize("kind", ["sdpa", "dense"])
def test_greedy_answers_of_a_deep_grouped_model_are_those_of_generate(kind, request):
    """Uneven prefixes and queries, in one batch, against each row by itself."""
    if kind == "dense":
        request.getfixturevalue("dense")
    model = tiny_model("qwen3").float()
    jobs = []
    for tree in ragged_trees(3, seed=4):
        for branch in tree.branches:
            jobs.append(sampling.Job("x", 0, tree.prefix, branch.query, Random(1)))

    class Tokens:
        size, stop_ids = 97, frozenset([96])

    class Spec:
        maxNewTokens, temperature, topP = 24, 0, 1.0

    assert sampling.generate(model, Tokens, jobs, Spec, sampling.Progress(0, len(jobs)))
    for job in jobs:
        prompt = torch.tensor([job.prefix + job.query])
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=96,
            pad_token_id=0,
            begin_suppress_tokens=[96],
        )
        assert job.ids == theirs[0, prompt.shape[1] :].tolist()


def test_draws_depend_on_seed_id_and_draw_alone(draw, monkeypatch):
    everything = draw(ROWS, draws=3)
    assert len(everything) == 18 and len({row["text"] for row in everything}) > 12
    known = {(row["id"], row["draw"]): row for row in everything}
    monkeypatch.setattr(sampling, "ROWS", 4)  # other neighbours
    for row in draw(ROWS[::-1], draws=3) + draw([ROWS[4]], draws=2):
        assert row == known[row["id"], row["draw"]]
    assert draw(ROWS, draws=3, seed=6) != everything


def test_a_batch_holds_prefixes_of_about_as_many_jobs_and_each_job_once():
    busy = [[(1, 2, 3)] * 40, [(4, 5)] * 3, [(6,)] * 4, [()] * 90, [(7, 8, 9)] * 1]
    prefixes = [list(prefix) for run in busy for prefix in run]
    jobs = [sampling.Job(str(i), 0, prefix, [1], Random(i)) for i, prefix in enumerate(prefixes)]
    batches = sampling.cut_batches(jobs, tiny_model(), 4)
    assert sorted(int(job.id) for batch in batches for job in batch) == list(range(len(jobs)))
    for batch in batches:
        counts = [prefixes.count(job.prefix) for job in batch]
        assert max(counts) <= 2 * min(counts)
    assert len(batches) == 4  # 1; 3 and 4; 40; 90


def test_a_batch_counts_a_prefix_once_in_whatever_order_jobs_come(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(sampling, "CACHE_BYTES", 60 * sampling.cache_bytes(model))  # two prefixes of 10, eight rows of 5
    prefixes = [[at % 2] * 10 for at in range(8)]
    jobs = [sampling.Job(str(i), 0, prefix, [1], Random(i)) for i, prefix in enumerate(prefixes)]
    assert len(sampling.cut_batches(jobs, model, 4)) == 1


def test_an_answer_is_never_empty(draw):
    samples = draw(ROWS, draws=40, temperature=2, maxNewTokens=3)
    special = set(AutoTokenizer.from_pretrained(TINY).added_tokens_decoder)
    assert any(row["tokens"] < 3 for row in samples)  # some do end early
    assert special and all(row["text"] != "" and row["tokens"] > 0 for row in samples)


def test_a_prompt_beyond_the_context_is_refused(draw):
    with pytest.raises(Exception, match="Row row-0 has .* above the model's context 160: lower maxNewTokens"):
        draw(ROWS, maxNewTokens=150)


def test_choice_follows_temperature_and_nucleus():
    logits = numpy.log(numpy.array([0.5, 0.3, 0.15, 0.05], dtype=numpy.float32))
    random = Random(1)

    def shares(temperature, top_p):
        picked = [choose(logits, temperature, top_p, random) for _ in range(4000)]
        return numpy.bincount(picked, minlength=4) / 4000

    assert shares(1, 1) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(1, 0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(0.5, 1) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)


@pytest.mark.parametrize("shared", [True, False])
def test_scores_are_summed_log_probs(engine, tmp_path, shared):
    out = tmp_path / "scores.parquet"
    data = [write_parquet(tmp_path / "rows.parquet", ROWS)]
    spec = {"v": 1, "command": "score", "checkpoint": str(TINY), "data": data, "out": str(out)}
    events = engine({**spec, "shared": shared})
    assert events[-1] == {"event": "progress", "done": 6, "total": 6}
    scored = parquet.read_table(out).to_pylist()
    assert [row["id"] for row in scored] == [row["id"] for row in ROWS]
    for row, (chosen, rejected) in zip(scored, REFERENCE["logps"]):
        assert row["logpChosen"] == pytest.approx(chosen, rel=1e-5)
        assert row["logpRejected"] == pytest.approx(rejected, rel=1e-5)


def test_bfloat16_is_asked_for_and_stays_near(engine, draw, tmp_path):
    out = tmp_path / "scores.parquet"
    data = [write_parquet(tmp_path / "rows.parquet", ROWS)]
    spec = {"v": 1, "command": "score", "checkpoint": str(TINY), "data": data, "out": str(out)}
    engine({**spec, "precision": "bfloat16"})
    scored = [row["logpChosen"] for row in parquet.read_table(out).to_pylist()]
    exact = [chosen for chosen, _ in REFERENCE["logps"]]
    assert scored == pytest.approx(exact, rel=2e-2)
    assert scored != pytest.approx(exact, rel=1e-5)
    coarse = draw(ROWS, draws=4, precision="bfloat16")
    assert all(row["text"] for row in coarse)
    assert coarse != draw(ROWS, draws=4)


def test_describe_tells_size_vocabulary_and_shape(engine):
    (event,) = engine({"v": 1, "command": "describe", "checkpoint": str(TINY)})
    assert event["parameters"] == 9232 and event["vocabulary"] == 300
    assert event["config"]["layers"] == 2 and event["config"]["context"] == 160


def test_ids_and_texts_are_those_of_transformers():
    files = {name: (TINY / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    tokens = open_tokens(files)
    for one in REFERENCE["encodings"]:
        assert tokens.encode(one["text"]) == one["ids"]
        assert tokens.decode(one["ids"]) == one["back"]


def test_merges_are_counted_over_words_by_falling_frequency():
    vocabulary, merges = learn_bpe(["low low low lower newest newest"], 1 + 256 + 4, [END_OF_TEXT])
    assert merges[:3] == [["Ġ", "l"], ["o", "w"], ["Ġl", "ow"]]
    assert vocabulary["Ġlow"] == 259


def test_a_learnt_tokenizer_gives_answers_back_as_they_were():
    tokens = learn_tokens(["A dull film. " * 9], 340, ["## Question\n"])
    for text in ["How was Heat?", "naïve 電影 🎬\t\n x"]:
        assert tokens.decode(tokens.encode(text)) == text
    assert tokens.end_id == 0 and tokens.encode("film") == tokens.encode(" film")


def test_random_numbers_are_those_of_the_typescript_side():
    assert canonical_json({"b": 1, "a": ["é", 2]}) == '{"a":["é",2],"b":1}'
    assert seed_of(0, "epoch", 1) == KNOWN["seed"]
    assert Random(7).shuffle(range(8)) == KNOWN["shuffle"]
    random = Random("x")
    assert [random.next(), random.normal()] == pytest.approx(KNOWN["numbers"], rel=1e-15)


KNOWN = json.loads("""{"seed":1797472992,"shuffle":[2,7,4,0,3,1,6,5],"numbers":[0.9612763549035259,1.1945725024781872]}""")
