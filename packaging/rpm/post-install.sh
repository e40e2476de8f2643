systemd-sysusers fwupdate.conf || :
# The agent ran as root once: settings that root alone may read are opened to its group.
for file in /etc/fwupdate.toml /etc/fwupdate.d/*.toml; do
    if [ -f "$file" ] && [ "$(stat -c %U:%G:%a "$file")" = root:root:600 ]; then
        chgrp fwupdate-agent "$file" && chmod 640 "$file" || :
    fi
done
if [ -d /run/systemd/system ]; then
    systemd-tmpfiles --create fwupdate.conf || :
    systemctl daemon-reload || :
    udevadm control --reload && udevadm trigger --subsystem-match=block --settle || :
fi
if [ $1 -eq 1 ] && [ -x /usr/bin/systemctl ]; then
    systemctl --no-reload preset fwupdate.service fwupdate-deadman.timer || :
fi
