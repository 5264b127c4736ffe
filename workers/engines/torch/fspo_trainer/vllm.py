"""Answers by vLLM in place of our own generation. Untested on a GPU: the tests run vLLM's build for CPUs.

The rules are our own sampler's: token ids go in, stop ids end an answer, which is never empty, and a row's seed comes
from (seed, id, draw). Greedy answers are the same to rounding; others come from vLLM's own random numbers.
"""

import os

import torch

from .checkpoint import context_of, open_checkpoint
from .events import emit, stop_requested
from .extras import require
from .sample import ROWS, Job, Progress, read_jobs, write_answers
from .seeds import seed_of
from .tokens import Tokens

# In this process, so that it ends with us; stdout is for events; nothing is told to anybody.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_CACHE_BYTES = 2 * 2**30  # of keys and values; vLLM would take nearly all memory, as it does of a GPU's


def sample(spec) -> bool:
    """Generates `draws` answers per row. Returns False when stopped."""
    require("vllm", "backend vllm")
    opened = open_checkpoint(spec.checkpoint)
    context = context_of(opened.config)
    jobs = read_jobs(spec, opened.tokens, context)
    if not _generate(_start(spec, context), jobs, spec, opened):
        emit("preempted", step=0)
        return False
    write_answers(spec.out, jobs, opened.tokens)
    return True


def _start(spec, context: int):
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import vllm

    arguments = vllm.EngineArgs(
        model=spec.checkpoint,
        skip_tokenizer_init=True,
        generation_config="vllm",  # nothing is taken over from generation_config.json
        dtype=spec.precision,
        max_model_len=context,
        max_num_seqs=ROWS // 2 if spec.halved else ROWS,
        enable_prefix_caching=True,
        kv_cache_memory_bytes=None if torch.cuda.is_available() else CPU_CACHE_BYTES,
        disable_log_stats=True,
    )
    return vllm.LLMEngine.from_engine_args(arguments)


def _generate(engine, jobs: list[Job], spec, opened) -> bool:
    """Fills the jobs' ids. Returns False when asked to stop."""
    for place, job in enumerate(jobs):
        prompt = {"prompt_token_ids": job.prefix + job.query}
        engine.add_request(str(place), prompt, _parameters(job, spec, opened))
    progress = Progress(0, len(jobs))
    done = 0
    while engine.has_unfinished_requests():
        if stop_requested():
            return False
        for output in engine.step():
            if output.finished:
                jobs[int(output.request_id)].ids = list(output.outputs[0].token_ids)
                done += 1
        progress.say(done)
    emit("progress", done=done, total=len(jobs))
    return True


def _parameters(job: Job, spec, opened):
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    tokens: Tokens = opened.tokens
    is_padded = opened.config.vocab_size > tokens.size  # ids that no token has
    return SamplingParams(
        temperature=spec.temperature,
        top_p=spec.topP,
        seed=seed_of(spec.seed, job.id, job.draw),
        max_tokens=spec.maxNewTokens,
        min_tokens=1,  # before it no stop id is chosen: nothing is no answer
        stop_token_ids=sorted(tokens.stop_ids),
        ignore_eos=True,  # it is among the stop ids
        allowed_token_ids=list(range(tokens.size)) if is_padded else None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
