#!/usr/bin/env bash
# accelerate launch --cpu --num_processes 2 starts one process, which takes itself for the only one, without a word.
#
# The help of --num_processes is "The total number of processes to be launched in parallel", and with GPUs it is. On CPUs
# the launcher starts the script once and leaves two processes to MPI, which it calls only where --mpirun_hostfile is
# given; else nothing is said. The script's state then has num_processes 1, so it trains on all data with a batch half as
# large as asked for, and every number it logs looks right. Right: torchrun, or a hostfile.
#
# Seen with torch 2.13.0 (CPU), accelerate 1.15.0:
#   accelerate launch --cpu --num_processes 2   process 0 of 1
#   torchrun --nproc-per-node 2                 process 0 of 2, process 1 of 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 accelerate==1.15.0
cat > "$folder/each.py" <<'PYTHON'
from accelerate import PartialState

state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}\n", end="", flush=True)
PYTHON
export HF_HOME="$folder/home"  # without settings of the user's
export PATH="$folder/venv/bin:$PATH"
launched=$(accelerate launch --cpu --num_processes 2 "$folder/each.py")
torchrun=$(torchrun --nproc-per-node 2 "$folder/each.py" | sort)
printf 'accelerate launch --cpu --num_processes 2\n%s\ntorchrun --nproc-per-node 2\n%s\n' "$launched" "$torchrun"
[ "$launched" = "process 0 of 1" ]
[ "$torchrun" = $'process 0 of 2\nprocess 1 of 2' ]
