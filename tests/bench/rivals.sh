# What `run.sh` needs of other people's tools: their bundles, signed as they want them, and RAUC's daemon on a bus of
# its own. Sourced; runs in the folder of the images.

sign_certificate() {   # one self-signed key for RAUC and SWUpdate
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=bench \
        -addext extendedKeyUsage=emailProtection,codeSigning -addext keyUsage=digitalSignature \
        -keyout signer.key -out signer.pem 2> /dev/null
}

rauc_bundle() {   # a plain bundle: verity needs a kernel with device-mapper
    rm -rf rauc.content new.raucb
    mkdir rauc.content
    ln new.ext4 rauc.content/rootfs.img
    printf '[update]\ncompatible=bench\nversion=1\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=rootfs.img\n' \
        > rauc.content/manifest.raucm
    rauc bundle --cert=signer.pem --key=signer.key --mksquashfs-args='-comp zstd -Xcompression-level 19' \
        rauc.content new.raucb > /dev/null 2>&1
    rm -rf rauc.content
}

swupdate_bundle() {   # zstd -19, written while it is unpacked
    cat > sw-description <<END
software =
{
    version = "1";
    hardware-compatibility: [ "1.0" ];
    images: ({
        filename = "new.ext4.zst"; type = "raw"; device = "$PWD/slot"; compressed = "zstd";
        installed-directly = true; sha256 = "$(sha256sum new.ext4.zst | cut -d' ' -f1)";
    });
}
END
    openssl cms -sign -in sw-description -out sw-description.sig -signer signer.pem -inkey signer.key \
        -outform DER -nosmimecap -binary
    printf '%s\n' sw-description sw-description.sig new.ext4.zst | cpio -o -H crc --quiet > new.swu
    rm sw-description sw-description.sig
}

rauc_start() {   # rauc_start BOOTED TARGET: sets `rauc_pid`; slots as block devices, no bootloader
    mkdir -p rauc.run
    cat > rauc.run/system.conf <<END
[system]
compatible=bench
bootloader=noop
statusfile=$PWD/rauc.run/status
mountprefix=$PWD/rauc.run/mnt
[keyring]
path=$PWD/signer.pem
[slot.rootfs.0]
device=$1
type=raw
bootname=A
[slot.rootfs.1]
device=$2
type=raw
bootname=B
END
    cat > rauc.run/bus.conf <<END
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=$PWD/rauc.run/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
END
    rm -f rauc.run/bus
    dbus-daemon --config-file=rauc.run/bus.conf --nofork --nopidfile 2> rauc.run/bus.log &
    bus_pid=$!
    export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$PWD/rauc.run/bus
    until [ -S rauc.run/bus ]; do kill -0 $bus_pid; sleep 0.05; done
    rauc service --conf=rauc.run/system.conf --override-boot-slot=A > rauc.run/log 2>&1 &
    rauc_pid=$!
    until dbus-send --bus="$DBUS_SYSTEM_BUS_ADDRESS" --print-reply --dest=org.freedesktop.DBus / \
        org.freedesktop.DBus.NameHasOwner string:de.pengutronix.rauc | grep -q true; do
        kill -0 $rauc_pid
        sleep 0.05
    done
}

rauc_stop() {
    kill $rauc_pid && wait $rauc_pid 2> /dev/null || true
    kill $bus_pid && wait $bus_pid 2> /dev/null || true
}
