"""vLLM's OpenAI server for the CPU, quick to start: ``python -m arpo_replica.policy.serve OPTIONS``.

Takes the options of ``vllm serve`` and runs vLLM's own functions. The difference: ``vllm serve`` on a CPU
imports torch, transformers and vLLM three times, one process after another (server, engine, worker), some
13 s of CPU time each. Here they are imported once, and the engine is forked from the server with its worker
inside. On a GPU ``vllm serve`` is used as it is: a process that has touched CUDA cannot be forked.

Only for envs/cpu; nothing else imports this module.
"""

import os

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
# libgomp cannot be used after a fork if its threads were running before. With one thread the server
# never starts any; the engine gets its threads back right after the fork.
os.environ["OMP_NUM_THREADS"] = "1"

import asyncio  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
from argparse import Namespace  # noqa: E402
from functools import partial  # noqa: E402

import torch  # noqa: E402
import uvloop  # noqa: E402
import vllm.v1.engine.core  # noqa: E402
import vllm.v1.executor.uniproc_executor  # noqa: E402
import vllm.v1.worker.cpu_model_runner  # noqa: E402
import vllm.v1.worker.cpu_worker  # noqa: E402, F401
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.entrypoints.openai.api_server import build_and_serve, setup_server  # noqa: E402
from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args  # noqa: E402
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration  # noqa: E402
from vllm.model_executor.models.registry import ModelRegistry  # noqa: E402
from vllm.usage.usage_lib import UsageContext  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402


async def serve(arguments: Namespace) -> None:
    """Start the engine and serve until SIGTERM."""
    # As a class, not a name: vLLM would look at a name's class in a process of its own, with all imports.
    ModelRegistry.register_model(
        Qwen2_5_VLForConditionalGeneration.__name__, Qwen2_5_VLForConditionalGeneration
    )
    address, listener = setup_server(arguments, reuse_port=False)
    engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
    config = engine_arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    if threading.active_count() != 1:
        raise RuntimeError(f"the server must have one thread when it forks: {threading.enumerate()}")
    # vLLM's CPU platform has just set "spawn"; what it guards against (OpenMP, CUDA) is not there.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, THREADS))
    engine = AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=False,
        disable_log_stats=engine_arguments.disable_log_stats,
    )
    try:
        shutdown = await build_and_serve(engine, address, listener, arguments)
        await shutdown
    finally:
        engine.shutdown()
        listener.close()


def main() -> None:
    """Parse the options of ``vllm serve`` and serve."""
    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args()
    validate_parsed_serve_args(arguments)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # until uvicorn installs its own
    try:
        uvloop.run(serve(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return


if __name__ == "__main__":
    main()
