# shellcheck shell=bash
# What proofs have in common. ./run sets the environment: KUBECONFIG, DOCKER_HOST, PATH, CLUSTER_STATE, EDGE_LOAD, and
# PROOF_OUT, the folder of this proof's files. A proof ends with 0 when it came to its end; whether its promises held is in
# what it gave to `check`.
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
    rm -f "$PROOF_OUT/port-forward.log"       # the one before: its port is no longer there
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

# call FILE.proto JSON METHOD: one RPC on a connection of its own, through the external IP; needs cert.pem and $address.
call() {
    outside grpcurl -v -max-time 10 -d "$2" -import-path "$REPOSITORY/proto/api" -proto "$1" -authority grpc.example.com -cacert cert.pem \
        "${address:?}:443" "$3"
}
# calls NAME: one RPC after another to echo-grpc, each on a connection of its own, until the file NAME.stop exists; NAME.ok and
# NAME.failed have a line each. For what concerns new connections; `load` is for the others.
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

# deploy [SED-EXPRESSION…]: the whole system, current and ready, in a namespace that the proofs about faults share, so that
# only the first of them builds and waits: `skaffold run` gives all pods a new label each time. It is as
# deploy/overlays/namespace has it, but for a route to echo-grpc's server reflection, whose streams last as long as their
# clients like; further expressions edit the proxy's configuration. Sets $NAMESPACE, which is kubectl's from here on, and
# $address; cert.pem is in the working folder.
deploy() {
    NAMESPACE=${PROOF_NAMESPACE:-faults}        # of two runs at a time, each needs its own
    cp "$KUBECONFIG" kubeconfig
    export KUBECONFIG=$PWD/kubeconfig
    kubectl config set-context --current --namespace="$NAMESPACE"
    kubectl get namespace "$NAMESPACE" >/dev/null 2>&1 || kubectl create namespace "$NAMESPACE"
    if ! kubectl get secret edge-certs --output=jsonpath='{.data.tls\.crt}' 2>/dev/null | base64 -d >cert.pem || [ ! -s cert.pem ]; then
        pair cert
        kubectl create secret tls edge-certs --key cert.key --cert cert.pem
    fi
    rm -rf checkout
    copy checkout
    local edit
    for edit in "s/edge-grpc\.svc/$NAMESPACE.svc/; s|^routes:$|&\n  - { prefix: /grpc.reflection.v1.ServerReflection/, cluster: echo-grpc }|" "$@"; do
        sed -i "$edit" checkout/deploy/overlays/namespace/edge-proxy/edge-proxy.yaml
    done
    sed -i "s/^namespace: .*/namespace: $NAMESPACE/" checkout/deploy/overlays/namespace/edge-proxy/kustomization.yaml
    local context=(Cargo.toml Cargo.lock proto grpc-service echo-grpc reverse-grpc http2 edge-proxy deploy/Dockerfile skaffold.yaml)
    module services "$(digest "${context[@]}" deploy/echo-grpc deploy/reverse-grpc)" --module=echo-grpc,reverse-grpc
    module proxy "$(digest "${context[@]}" deploy/edge-proxy deploy/overlays/namespace)" --module=edge-proxy --profile=namespace
    kubectl scale --replicas=2 deployment/echo-grpc deployment/reverse-grpc deployment/edge-proxy
    kubectl rollout status deployment/echo-grpc --timeout=200s
    kubectl rollout status deployment/reverse-grpc --timeout=200s
    kubectl rollout status deployment/edge-proxy --timeout=200s
    within 60 has_external_ip
    within 60 reachable
    address=$(external_ip)
}
digest() { (cd checkout && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1); }
# module NAME DIGEST OPTION…: skaffold_run, unless that is deployed already; the namespace's annotation NAME says what is.
module() {
    local name=$1 digest=$2
    shift 2
    [ "$(kubectl get namespace "$NAMESPACE" --output=jsonpath="{.metadata.annotations.$name}")" != "$digest" ] || return 0
    skaffold_run "$@"
    kubectl annotate --overwrite namespace "$NAMESPACE" "$name=$digest"
}
skaffold_run() {
    (cd checkout && skaffold run --namespace="$NAMESPACE" --default-repo="$REGISTRY/edge-grpc-images" --insecure-registry="$REGISTRY" "$@")
}

# load NAME: edge-load in the background, outside the cluster, from $address being served until `unload NAME`. $STREAMS
# (20) are its streams, $CA (cert.pem) is whom it trusts. Clients send keep-alive PINGs, as gRPC's documents advise for
# networks that lose peers silently: it is what ends a connection to a node that is gone.
load() {
    (exec nsenter --net=/run/netns/outside "$EDGE_LOAD" "${address:?}:443" --ca "${CA:-cert.pem}" --rate 500 --connections 20 --duration 2h \
        --reverse --streams "${STREAMS:-20}" --stream-method reflection --stream-length 20s --keepalive 10s --keepalive-timeout 5s \
        --json "$1.json" 2>"$1.seconds") &
    echo $! >"$1.pid"
    within 30 grep -qE ' ok +[1-9]' "$1.seconds" || { cat "$1.seconds"; return 1; }
}
# Nothing more is sent, and what runs may finish (streams: 20 s).
unload() {
    kill -INT "$(cat "$1.pid")"
    wait "$(cat "$1.pid")" || true
    account "$1" '"\(.sent) RPCs and \(.streams.sent) streams over \(.connections) connections, latency p50 \(.latency_us.p50) us, p99 \(.latency_us.p99) us, max \(.latency_us.max) us"'
    account "$1" '.first_failures[:20][]'
}
# account NAME FILTER: what jq's FILTER says about NAME.json.
account() { jq -r "$2" "$1.json"; }
failed() { account "$1" '[.failed[]] + [.not_sent] | add'; }
# begun_after NAME UNIX-TIME: how many of the failed RPCs were begun later; known if not more failed than the account keeps.
begun_after() {
    account "$1" "if ([.failed[]] | add // 0) > (.first_failures | length) then \"unknown\" else [.first_failures[] | select(.begun > $2)] | length end"
}
# strangers NAME POD UNIX-TIME: how many of the failed RPCs another pod had answered, or had ended earlier.
strangers() {
    account "$1" "[.first_failures[] | select((.hostname != null and .hostname != \"$2\") or .ended < $3)] | length"
}
sent() { account "$1" '.sent + .streams.sent'; }
now() { date +%s.%N; }

# nothing_lost NAME WHILE: one row.
nothing_lost() {
    local failed sent behind
    failed=$(failed "$1") sent=$(sent "$1") behind=$(behind "$1")
    [ "$behind" -lt 2 ] && behind="" || behind="; edge-load itself stood still for $behind s"
    check "no RPC fails while ${2:?}" "$failed of $sent failed; $(account "$1" '.streams.sent') of them streams of 20 s, p99 $(account "$1" '.latency_us.p99 / 1000 * 10 | round / 10') ms$behind" \
        [ "$failed" -eq 0 ]
}
# For how many seconds edge-load did nothing, as it has sent their RPCs at once when it went on: then what failed is its
# clients' doing, whose keep-alive has waited for nothing all that time.
behind() { awk '/ sent / && $4 > 1000 { late += $4 - 500 } END { printf "%d", late / 500 }' "$1.seconds"; }

# restart APP…: all of them rolled out at once, until the new pods are available.
restart() {
    local app
    for app in "$@"; do pods "$app" >"pods.$app.before"; done
    kubectl rollout restart "${@/#/deployment/}"
    for app in "$@"; do kubectl rollout status "deployment/$app" --timeout=300s || return; done
}
# gone APP…: the old pods, too, have finished what they ran.
gone() {
    local app
    for app in "$@"; do within 150 none_left "$app" || return; done
}
none_left() {
    local left
    kubectl get pods --selector "app=$1" -o name >"pods.$1.now" || return
    left=$(sed 's|pod/||' "pods.$1.now" | grep -Fxf "pods.$1.before" || true)
    [ -z "$left" ]
}

# process POD: the process id of its container, of this machine's.
process() {
    local id node
    read -r node id < <(kubectl get pod "$1" --output=jsonpath='{.spec.nodeName} {.status.containerStatuses[0].containerID}')
    ctr --address "$CLUSTER_STATE/$node/containerd.sock" -n k8s.io tasks ls | awk -v id="${id#containerd://}" '$1 == id {print $2}'
}
# ended PROCESS: waits for its end, at most 30 s, and says when that was.
ended() {
    local state
    for _ in $(seq 1500); do
        state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || break
        case $state in '' | Z | X) break ;; esac
        sleep 0.02
    done
    now
}
after() { jq --null-input "$1 + $2"; } # UNIX-TIME SECONDS
# When the last of NAME's failed RPCs was begun, as seen from UNIX-TIME; and how long the longest took to fail.
last_begun() {
    account "$1" "[.first_failures[].begun] | if length == 0 then \"none\" else (max - $2) * 10 | round / 10 |
        if . > 0 then \"the last begun \\(.) s after it\" else \"the last begun \\(0 - .) s before it\" end end"
}
longest() { account "$1" '[.first_failures[] | .ended - .begun] | (max // 0) * 10 | round / 10'; }
