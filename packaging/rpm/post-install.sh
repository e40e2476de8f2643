systemd-sysusers fwupdate.conf || :
if [ $1 -eq 1 ] && [ -x /usr/bin/systemctl ]; then
    systemctl --no-reload preset fwupdate.service fwupdate-deadman.timer || :
fi
