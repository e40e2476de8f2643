#!/usr/bin/env bash
# The daemon's size, and when it is idle, connected to the local hub and with nothing to do: its memory, and how often
# it wakes. Fails above a wake-up in five seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release --bin fwupdated --bin fwupdatectl
cargo build --quiet -p fwupdate-hub
daemon=target/release/fwupdated

dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$dir"' EXIT
mkdir "$dir/keys"
truncate -s 8M "$dir/a.img" "$dir/b.img"
mkfifo "$dir/ready"
target/debug/fwupdate-hub serve --dir "$dir/hub" --mqtt-port 0 --https-port 0 >"$dir/ready" 2>"$dir/hub.log" &
read -r _ _ mqtt _ <"$dir/ready"
target/debug/fwupdate-hub device add idle --dir "$dir/hub" >"$dir/connection-string"
chmod 600 "$dir/connection-string"
cat >"$dir/fwupdate.toml" <<EOF
compatible = "desk"
cloud = { connection_string_file = "$dir/connection-string", ca_file = "$dir/hub/ca.pem", port = ${mqtt##*:} }
slots = { a = { device = "$dir/a.img" }, b = { device = "$dir/b.img" } }
bootloader = { kind = "uboot", config = "$dir/fw_env.config" }
trust = { keys = "$dir/keys" }
state = { dir = "$dir/state" }
system = { run = "$dir/run" }
EOF
# As under systemd: a watchdog of a minute, of which nobody listens to the notices.
WATCHDOG_USEC=60000000 NOTIFY_SOCKET="$dir/notify" "$daemon" --config "$dir/fwupdate.toml" 2>"$dir/agent.log" &
agent=$!
# doctor fails on a desk, where the running slot is not known; what it says of the hub counts.
connected() { { target/release/fwupdatectl --socket "$dir/run/control.sock" doctor --json 2>/dev/null || true; } | grep -q "session is open"; }
for _ in $(seq 600); do connected && break || sleep 0.1; done
connected || { cat "$dir/agent.log" >&2; echo "the agent did not connect" >&2; exit 1; }

stat -c 'fwupdated  %s bytes, stripped' "$daemon"
# Of all threads, those of helpers included that end when they have nothing to do.
wakeups() { cat /proc/"$agent"/task/*/status | awk '/^voluntary/ { sum += $2 } END { print sum }'; }
threads() { ls "/proc/$agent/task" | wc -l; }
# The helpers' patience is ten seconds; two threads stay.
for _ in $(seq 600); do [ "$(threads)" -le 2 ] && break || sleep 0.1; done
awk '/^VmRSS|^RssAnon/ { printf "%-10s %.1f MiB\n", $1, $2 / 1024 }' "/proc/$agent/status"

seconds=${SECONDS_IDLE:-120}
before=$(wakeups)
sleep "$seconds"
awk -v woken=$(($(wakeups) - before)) -v seconds="$seconds" 'BEGIN {
    printf "wake-ups   %d in %d s, %.2f a second\n", woken, seconds, woken / seconds
    exit woken * 5 >= seconds
}'
