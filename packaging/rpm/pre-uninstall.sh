if [ $1 -eq 0 ] && [ -x /usr/bin/systemctl ]; then
    systemctl --no-reload disable --now fwupdate.service fwupdate-deadman.timer || :
    systemctl --no-reload stop fwupdate-root.socket fwupdate-proven.path fwupdate-clock.service || :
fi
