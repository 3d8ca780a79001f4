#!/bin/sh
# setup.sh DRIVER…: what the gateway, its REST front and each driver need to know each other; what is there already stays.
set -eu
data=$ONECONTAINER_DATA_DIR
[ -e "$data/tls/key.pem" ] || oca sidecar certificate gateway localhost 127.0.0.1 "$ONECONTAINER_HOST" --out "$data/tls"
[ -s "$data/registration.token" ] || (umask 077 && python3 -c 'import secrets; print(secrets.token_urlsafe(32))' >"$data/registration.token")
[ -e /trust/rest/key.pem ] || oca sidecar certificate rest localhost 127.0.0.1 "$ONECONTAINER_HOST" --out /trust/rest
for driver in "$@"; do
  [ -e "/trust/$driver/key.pem" ] || oca sidecar certificate "driver-$driver" --out "/trust/$driver"
  (umask 077 && cp "$data/registration.token" "/trust/$driver/")
done
chown -R 65532:65532 "$data" /trust/*
