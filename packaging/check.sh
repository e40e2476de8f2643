#!/bin/sh
# Examines the packages that `make packages` (or `make deb`) made: lintian, rpmlint where it is installed, and the life of the agent's
# package in a Debian root: install, configure, upgrade, remove, purge. As root.
set -eu

cd "$(dirname "$0")/.."
agent=$(readlink -f target/debian/fwupdate-agent.deb)
tools=$(ls -t target/debian/fwupdate-tools_*.deb | head -1)
fail() { echo "packaging/check.sh: $*" >&2; exit 1; }

lintian --fail-on error "$agent" "$tools"
if ls target/generate-rpm/*.rpm > /dev/null 2>&1 && command -v rpmlint > /dev/null; then
    rpmlint target/generate-rpm/*.rpm || :
fi
systemd-analyze security --offline=yes --threshold=13 systemd/fwupdate.service > /dev/null ||
    fail "the service is exposed more than 1.3"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv bookworm "$root" \
    /etc/apt/sources.list.d/debian.sources
run() { chroot "$root" "$@"; }
cp "$agent" "$root/tmp/agent.deb"

echo "ok      lintian, rpmlint where it is, and the unit's exposure"
# Installed: enabled, and as shipped it says what is to be filled in.
# The group may be there from a version that ran as root.
run groupadd --system fwupdate
run dpkg -i /tmp/agent.deb
test "$(run id -gn fwupdate)" = fwupdate || fail "the user fwupdate is not in the group fwupdate"
run getent group fwupdate-agent > /dev/null || fail "no group fwupdate-agent"
run systemd-analyze verify --man=no fwupdate.service fwupdate-proven.path fwupdate-deadman.timer > "$root/tmp/said" 2>&1 || :
grep fwupdate "$root/tmp/said" && fail "systemd objects to a unit"
for unit in fwupdate.service fwupdate-deadman.timer; do
    test "$(run systemctl is-enabled $unit)" = enabled || fail "$unit is not enabled"
done
run fwupdated --check-config > "$root/tmp/said" 2>&1 && fail "settings without a board are accepted"
grep -q 'settings are missing: `compatible`' "$root/tmp/said" || fail "it does not say what is missing"
run /usr/lib/systemd/system-generators/fwupdate-generator /tmp/g /tmp/g /tmp/g || fail "the generator fails"
run journalctl --update-catalog && run journalctl --list-catalog | grep -q 'A firmware update has started' ||
    fail "the catalogue is not read"

echo "ok      install"
# Upgraded: settings, state and a disabled timer stay as they are.
cp packaging/examples/uboot-emmc.toml "$root/etc/fwupdate.toml"
chmod 600 "$root/etc/fwupdate.toml"
mkdir -p "$root/var/lib/fwupdate"
echo state > "$root/var/lib/fwupdate/record.0"
echo secret > "$root/var/lib/fwupdate/connection-string"
run systemctl --quiet disable fwupdate-deadman.timer
mkdir "$root/tmp/newer"
run sh -c 'dpkg-deb -R /tmp/agent.deb /tmp/newer && sed -i "s/^Version: .*/Version: 99/" /tmp/newer/DEBIAN/control &&
    echo "# newer" >> /tmp/newer/etc/fwupdate.toml && dpkg-deb -b /tmp/newer /tmp/newer.deb'
run dpkg --force-confdef --force-confold -i /tmp/newer.deb
cmp -s packaging/examples/uboot-emmc.toml "$root/etc/fwupdate.toml" || fail "an upgrade changed the settings"
test "$(run stat -c %G:%a /etc/fwupdate.toml)" = fwupdate-agent:640 || fail "the agent cannot read its settings"
test "$(cat "$root/var/lib/fwupdate/record.0")" = state || fail "an upgrade lost the state"
test "$(run systemctl is-enabled fwupdate-deadman.timer || :)" = disabled || fail "an upgrade enabled the timer"

echo "ok      upgrade"
# Removed: settings and state stay. Purged: what the package and the agent made is gone, credentials are not.
run dpkg -r fwupdate-agent
test -e "$root/etc/fwupdate.toml" && test -e "$root/var/lib/fwupdate/record.0" || fail "removing took too much"
run dpkg -P fwupdate-agent
test ! -e "$root/etc/fwupdate.toml" && test ! -e "$root/var/lib/fwupdate/record.0" || fail "purging left something"
test "$(cat "$root/var/lib/fwupdate/connection-string")" = secret || fail "purging took credentials"
left=$(find "$root/etc/systemd" "$root/usr/lib" -name '*fwupdate*') && test -z "$left" || fail "left behind: $left"
echo "ok      remove and purge"

# The same life by rpm, where `make packages` made them and rpm is installed.
rpm=$(ls -t target/generate-rpm/fwupdate-agent-*.rpm 2> /dev/null | head -1 || :)
if [ -n "$rpm" ] && command -v rpm > /dev/null; then
    # What it requires is there, from Debian's packages, of which rpm knows nothing.
    rpm() { command rpm --root "$root" --nodeps "$@"; }
    cp "$rpm" "$root/tmp/agent.rpm"
    rpm -i "$root/tmp/agent.rpm"
    test "$(run systemctl is-enabled fwupdate.service)" = enabled || fail "rpm: fwupdate.service is not enabled"
    run getent group fwupdate > /dev/null || fail "rpm: no group fwupdate"
    cp packaging/examples/uboot-emmc.toml "$root/etc/fwupdate.toml"
    echo state > "$root/var/lib/fwupdate/record.0"
    rpm -U --replacepkgs --replacefiles "$root/tmp/agent.rpm"
    cmp -s packaging/examples/uboot-emmc.toml "$root/etc/fwupdate.toml" || fail "rpm: an upgrade changed the settings"
    rpm -e fwupdate-agent
    test ! -e "$root/usr/sbin/fwupdated" || fail "rpm: the agent is still there"
    test "$(cat "$root/var/lib/fwupdate/record.0")" = state || fail "rpm: removing took the state"
    echo "ok      rpm: install, upgrade and remove"
fi
echo "test result: ok. 1 passed; 0 failed"
