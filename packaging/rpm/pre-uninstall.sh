if [ $1 -eq 0 ] && [ -x /usr/bin/systemctl ]; then
    systemctl --no-reload disable --now fwupdate.service fwupdate-deadman.timer || :
fi
