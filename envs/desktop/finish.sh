#!/bin/sh
# What makes a Debian system our desktop, once its packages are there. Runs inside the new system, as its root, for
# Docker's image (Dockerfile) and for the one file of the rootless desktops (rootfs.sh) alike. /opt/build holds wheels/,
# guest/, home/ and mimeapps.list.
set -eu
# Docker writes its own; elsewhere nothing would know the name.
echo '127.0.0.1 localhost' > /etc/hosts
cd /opt/build
ln -sf python3 /usr/bin/python
python3 -m pip install --quiet --root-user-action=ignore --break-system-packages --no-index --no-deps wheels/*.whl
# Tasks and evaluators run `pkill chrome`. Chromium names its processes after the real file: a link is not enough.
cd /usr/lib/chromium && mv chromium chrome && ln -s chrome chromium
# The user that OSWorld's tasks know. Whether sudo can work at all is for whoever starts the desktop to say.
useradd --create-home --shell /bin/bash user && echo 'user:password' | chpasswd && usermod -aG sudo user
install -d -o user -g user -m 700 /run/user/1000 && install -d -m 755 /run/arpo /opt/desktop
cd /opt/build && cp mimeapps.list /etc/xdg/mimeapps.list && cp -r home guest /opt/desktop/
cd /opt/desktop && python3 -c 'from guest.container_start import write_image_files as write; write()'
for name in google-chrome google-chrome-stable chromium-browser chromium; do
    ln -s /opt/desktop/windowed/bin/google-chrome "/usr/local/bin/$name"
done
python3 -m compileall -q guest && chmod -R a+rX /opt/desktop && rm -r /opt/build
