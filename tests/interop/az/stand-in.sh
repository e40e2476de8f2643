#!/bin/sh
# The commands of docs/quickstart-azure.md that a test cannot run as they are: who stands in for each, and why. It is
# called under the command's name (tests/integration/quickstart.rs links it so); all others are the real ones.
set -eu

case "$(basename "$0")" in
az)
    # Azure is out of reach: az.py.
    exec "$PAGE_REPOSITORY/target/az/bin/python" "$PAGE_REPOSITORY/tests/interop/az/az.py" "$@"
    ;;
make)
    # The packages take minutes, and `make test` builds them anyway: that there is such a target is asked here.
    PATH=${PATH#*:} exec make -C "$PAGE_REPOSITORY" --no-print-directory -n "$@" > "$PAGE_SCRATCH/made"
    ;;
sudo)
    # The image is small and nobody's in particular, so that whoever tests may make it.
    exec "$@"
    ;;
apt)
    # Nothing is installed on the machine that tests; packaging/check.sh installs both packages in a Debian root.
    case "$*" in
    "install ./target/debian/fwupdate-tools.deb") grep -q " ${2#./}\$" "$PAGE_SCRATCH/made" ;;
    "install ./fwupdate-agent.deb") test "$2" = "./$(cat "$PAGE_SCRATCH/copied.deb")" ;;
    *) exit 2 ;;
    esac
    ;;
scp)
    # The gateway is a folder. Its paths, and hosts of Azure, are others there.
    test $# = 2
    to=${2#"$PAGE_GATEWAY:"}
    case $1 in
    *.deb)
        grep -q " ${1#"$PAGE_REPOSITORY/"}\$" "$PAGE_SCRATCH/made"
        basename "$1" > "$PAGE_SCRATCH/copied.deb"
        ;;
    *)
        test "$to" != "$2"
        sed -f "$PAGE_SCRATCH/paths.sed" "$1" > "$PAGE_SCRATCH/file"
        to=$(echo "$to" | sed -f "$PAGE_SCRATCH/paths.sed")
        case $to in */) to=$to$(basename "$1") ;; esac
        cp "$PAGE_SCRATCH/file" "$to"
        ;;
    esac
    ;;
ssh)
    # What it reads from the gateway's root, it reads from the folder that the image from the factory was made of.
    test "$1 $2" = "$PAGE_GATEWAY tar"
    shift
    for word; do
        shift
        test "$word" != / || word=$PAGE_SCRATCH/root-1.0.0
        set -- "$@" "$word"
    done
    exec "$@"
    ;;
python3)
    # The SDK is there already, in the venv of the other tests; `pip install` is then asked whether that is so.
    test "$1 $2" = "-m venv" && ln -s "$PAGE_REPOSITORY/target/venv" "$3"
    ;;
systemctl)
    # No systemd here: the test starts the agent, and says when it answers.
    case "$*" in
    "restart fwupdate")
        echo restart > "$PAGE_SCRATCH/asks"
        read -r _ < "$PAGE_SCRATCH/answers"
        ;;
    "status --no-pager fwupdate") ;;
    *) exit 2 ;;
    esac
    ;;
fwupdated)
    exec "$PAGE_PROGRAMS/fwupdated" --config "$PAGE_SETTINGS" "$@"
    ;;
fwupdatectl)
    # The gateway is a folder of this machine: that its state lies on the root file system alone may fail.
    "$PAGE_PROGRAMS/fwupdatectl" "$@" --socket "$PAGE_SOCKET" > "$PAGE_SCRATCH/findings" || status=$?
    cat "$PAGE_SCRATCH/findings"
    if grep '^failed' "$PAGE_SCRATCH/findings" | grep -v 'state folder: .* lies on the root file system'; then exit 1; fi
    grep -q '^failed' "$PAGE_SCRATCH/findings" || exit "${status:-0}"
    ;;
fwupdate-cloud)
    # It trusts the system's authorities, and the stand-in hub has its own.
    exec "$PAGE_PROGRAMS/fwupdate-cloud" --ca "$REQUESTS_CA_BUNDLE" "$@"
    ;;
*) exit 2 ;;
esac
