if [ $1 -ge 1 ] && [ -d /run/systemd/system ]; then
    systemctl try-restart fwupdate.service || :
fi
