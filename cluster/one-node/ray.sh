#!/usr/bin/env bash
# Ray on this machine alone, until it gets Ctrl-C or SIGTERM. It asks for the token in ~/.ray/auth_token,
# which is made if there is none, and listens on loopback only.
#   cluster/one-node/ray.sh [options of `ray start`, such as --num-gpus=4 or --dashboard-port=8266]
set -euo pipefail
umask 077 # the token and Ray's files are the user's own; Ray itself would write the token for all to read
export RAY_AUTH_MODE=token
unset RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
# With this Ray binds every port, not only the dashboard's, to 127.0.0.1.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export RAY_worker_niceness=0 # not Ray's 15, where all else on the machine comes first

# Jobs run the `python` that is first in the path, which must be the one with ressa.
venv=$(realpath "${RESSA_VENV:-$(dirname "$0")/../../.venv}")
export PATH="$venv/bin:$PATH"
ray get-auth-token --generate >/dev/null # what it says of errors stays to be seen
chmod 600 ~/.ray/auth_token
# Port 0, any that is free: where another Ray has the usual one, jobs would be refused.
exec ray start --head --block --disable-usage-stats --dashboard-host=127.0.0.1 \
  --dashboard-agent-listen-port=0 "$@"
