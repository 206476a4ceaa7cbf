#!/usr/bin/env bash
# Creates the passwords of the compose stack in ./secrets, and mosquitto's password file with their hashes.
# Existing files stay. Needs mosquitto_passwd (Debian: package mosquitto) or docker.
set -euo pipefail
# Nobody else may read what is made here, at no moment. Passwords are in files only: arguments are visible to every user.
umask 077
cd "$(dirname "$0")"

# The group of the stack's containers (deploy/Dockerfile, `group_add` in compose.yaml).
group=8787
mosquitto_image=eclipse-mosquitto:2

mkdir -p secrets
chmod 0700 secrets
passwords=secrets/mosquitto_passwords
new=$(mktemp secrets/.new.XXXXXX)
trap 'rm -f "$new"' EXIT

touch "$passwords"
for user in bridge reader commander homeassistant; do
    file="secrets/${user}_password"
    if [ ! -s "$file" ]; then
        head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$file"
        echo "made $file"
        # The hash of an earlier password that was removed.
        sed -i "/^$user:/d" "$passwords"
    fi
    if ! grep -q "^$user:" "$passwords"; then
        # Written by the shell itself. A file made by hand may lack the line break.
        printf '%s:%s\n' "$user" "$(cat "$file")" >>"$new"
    fi
done

# Replaces the passwords in the file by their hashes.
if [ -s "$new" ]; then
    if command -v mosquitto_passwd >/dev/null; then
        mosquitto_passwd -U "$new"
    else
        docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/secrets:/secrets" "$mosquitto_image" \
            mosquitto_passwd -U "/$new"
    fi
    cat "$new" >>"$passwords"
fi

# Compose passes these files on with their owner and permissions, and the containers run as other users: their group
# may read. The directory keeps everybody else out.
chmod 0600 secrets/*
# Where docker runs without root, the group has another number outside of the containers.
if chgrp "$group" secrets/* 2>/dev/null; then
    chmod 0640 secrets/*
elif ! command -v docker >/dev/null || ! docker run --rm --user 0:0 -v "$PWD/secrets:/secrets" "$mosquitto_image" \
    sh -c "chgrp $group /secrets/* && chmod 0640 /secrets/*"; then
    echo "the containers cannot read these files yet: sudo chgrp $group secrets/* && chmod 0640 secrets/*" >&2
fi
