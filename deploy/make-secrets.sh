#!/usr/bin/env bash
# Creates the passwords of the compose stack in ./secrets, and mosquitto's password file with their hashes.
# Existing files stay. Needs mosquitto_passwd (Debian: package mosquitto) or docker.
set -euo pipefail
cd "$(dirname "$0")"

mkdir -p secrets
passwords=secrets/mosquitto_passwords

hash_into() { # user password
    if command -v mosquitto_passwd >/dev/null; then
        mosquitto_passwd -b "$passwords" "$1" "$2"
    else
        docker run --rm -v "$PWD/secrets:/secrets" eclipse-mosquitto:2 \
            mosquitto_passwd -b "/$passwords" "$1" "$2"
    fi
}

touch "$passwords"
for user in bridge reader commander homeassistant; do
    file="secrets/${user}_password"
    if [ ! -s "$file" ]; then
        head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$file"
        hash_into "$user" "$(cat "$file")"
        echo "made $file"
    fi
done
# Compose passes these files with their permissions, and each container runs as another user: the files are
# readable by all, and the directory keeps everybody else out.
chmod 0711 secrets
chmod 0644 secrets/*
