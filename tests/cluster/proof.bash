# shellcheck shell=bash
# What proofs have in common. ./run sets the environment: KUBECONFIG, DOCKER_HOST, PATH, and PROOF_OUT, the folder of this
# proof's files. A proof ends with 0 when it came to its end; whether its promises held is in what it gave to `check`.
set -Eeuo pipefail
: "${PROOF_OUT:?proofs are started by tests/cluster/run}"

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
REGISTRY=198.18.0.1:5000
since=$SECONDS
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT      # load and port-forwards end with the proof

say() { printf '\n[%s] %s\n' "$(date +%T)" "$*"; }

# check PROMISED MEASURED COMMAND…: one row of the table; its seconds are those since the row before.
check() {
    local promised=$1 measured=$2 verdict=held
    shift 2
    "$@" || verdict=failed
    printf '%s\t%s\t%d\t%s\n' "$promised" "$(tr '\t\n' '  ' <<<"$measured" | sed 's/ *$//')" $((SECONDS - since)) "$verdict" >>"$PROOF_OUT/checks.tsv"
    say "$verdict: $promised: $measured"
    since=$SECONDS
}

# within SECONDS COMMAND…: whether it succeeded in time, tried four times a second.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.25
    done
}

# Clients stand outside the cluster, behind the load balancer. Not `ip netns exec`: it hides the cgroups.
outside() { nsenter --net=/run/netns/outside "$@"; }

# copy FOLDER: the checkout as it stands, without what Git ignores, so that a proof leaves nothing in it.
copy() {
    mkdir -p "$1"
    git -C "$REPOSITORY" ls-files -z --cached --others --exclude-standard --deduplicate | (
        cd "$REPOSITORY"
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done | tar --null --files-from=- -cf -
    ) | tar -C "$1" -xf -
}

# own_namespace NAME [LABEL…]: an empty namespace, which kubectl and skaffold use from here on. It goes when every check held.
own_namespace() {
    own=$1
    cp "$KUBECONFIG" "$PROOF_OUT/kubeconfig"
    export KUBECONFIG=$PROOF_OUT/kubeconfig
    trap 'leave_namespace $?' EXIT
    kubectl delete namespace "$own" --ignore-not-found
    kubectl create namespace "$own"
    kubectl config set-context --current --namespace="$own"
    [ $# -eq 1 ] || kubectl label namespace "$@"
}
# shellcheck disable=SC2329  # called by the trap
leave_namespace() { # EXIT-CODE
    jobs -p | xargs -r kill 2>/dev/null || true
    if [ "$1" -eq 0 ] && ! grep -q $'\tfailed$' "$PROOF_OUT/checks.tsv"; then
        kubectl delete namespace "$own" --wait=false
    fi
    rm -f "$PROOF_OUT/kubeconfig"
}

# pair NAME: NAME.pem and NAME.key, self-signed for grpc.example.com.
pair() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout "$1.key" -out "$1.pem" -subj /CN=grpc.example.com \
        -addext subjectAltName=DNS:grpc.example.com -addext basicConstraints=critical,CA:FALSE 2>/dev/null
}

# pods APP: the names of those that run and aren't about to go, in order.
pods() {
    kubectl get pods --selector "app=$1" --output=json |
        jq -r '.items[] | select(.status.phase == "Running" and .metadata.deletionTimestamp == null) | .metadata.name' | sort
}
pod_ip() { kubectl get pod "$1" --output=jsonpath='{.status.podIP}'; }

# admin POD PATH: a page of its admin interface, by a port-forward, and then the HTTP status on a line of its own.
admin() {
    local port forward
    kubectl port-forward "pod/$1" :8090 >"$PROOF_OUT/port-forward.log" 2>&1 &
    forward=$!
    within 20 grep -q '^Forwarding from 127' "$PROOF_OUT/port-forward.log" || true
    port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$PROOF_OUT/port-forward.log")
    curl --silent --max-time 5 --write-out '\n%{http_code}\n' "http://127.0.0.1:$port$2" || true
    kill "$forward" 2>/dev/null || true
    wait "$forward" 2>/dev/null || true
}
# metric POD SAMPLE: its value; SAMPLE is the name with its labels.
metric() { outside curl --silent --max-time 5 "http://$(pod_ip "$1"):8091/metrics" | awk -v sample="$2" '$1 == sample {print $2}'; }

external_ip() { kubectl get service edge-proxy --output=jsonpath='{.status.loadBalancer.ingress[0].ip}'; }
has_external_ip() { [ -n "$(external_ip)" ]; }
# The load balancer has found a node with a ready proxy.
reachable() { outside curl --silent --insecure --max-time 1 --output /dev/null "https://$(external_ip)/"; }

# deploy: the whole system in namespace default, current and ready, with cert.pem in the working folder.
deploy() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout privkey.pem -out cert.pem -subj /CN=grpc.example.com \
        -addext subjectAltName=DNS:grpc.example.com -addext basicConstraints=critical,CA:FALSE 2>/dev/null
    kubectl create secret tls edge-certs --key privkey.pem --cert cert.pem --dry-run=client --output yaml | kubectl apply --filename -
    (cd "$REPOSITORY" && skaffold run --default-repo="$REGISTRY/edge-grpc-images" --insecure-registry="$REGISTRY" --skip-tests)
    within 60 has_external_ip
    within 60 reachable
}

# call FILE.proto JSON METHOD: one RPC on a connection of its own, through the external IP; needs cert.pem and $address.
call() {
    outside grpcurl -v -max-time 10 -d "$2" -import-path "$REPOSITORY/proto/api" -proto "$1" -authority grpc.example.com -cacert cert.pem \
        "${address:?}:443" "$3"
}

# calls NAME: one RPC after another to echo-grpc until the file NAME.stop exists; NAME.ok and NAME.failed have a line each.
# A program that offers a rate and keeps connections open would take this function's place, with the same two files.
calls() {
    : >"$1.ok"
    : >"$1.failed"
    local answer
    until [ -e "$1.stop" ]; do
        if answer=$(call echo.proto '{"content": "echo"}' api.Echo/Echo 2>&1) && grep -q '"content": "echo"' <<<"$answer"; then
            sed -n 's/^hostname: //p' <<<"$answer" >>"$1.ok"
        else
            printf '%s %s\n' "$(date +%T.%3N)" "$(tr '\n' ' ' <<<"$answer")" >>"$1.failed"
        fi
    done
}
