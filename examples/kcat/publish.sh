#!/bin/sh
# Publishes one event with kcat: a mail that verifies an address, asked for on a terminal or by a shell script.
#
#   KAFKA_BROKERS=127.0.0.1:9092 sh publish.sh CAMPAIGN_ID USER_ID [EVENT_ID]
#
# The same EVENT_ID again is done once. On MSK, kcat needs a build with OAUTHBEARER; use the Python or Go producer there.
set -eu

if [ $# -lt 2 ]; then
    sed -n 's/^#   //p' "$0" >&2
    exit 2
fi
campaign=$1 user=$2
id=${3:-$(cat /proc/sys/kernel/random/uuid 2> /dev/null || uuidgen)}

# The key is the user's id. `|` parts it from the value, and -l would take a file of such lines.
printf '%s|{"id":"%s","type":"job.email.verification","campaign_id":"%s","data":{"type":"verification","campaign_id":"%s","user_id":"%s","priority":1},"timestamp":"%s"}\n' \
    "$user" "$id" "$campaign" "$campaign" "$user" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" |
    kcat -P -b "$KAFKA_BROKERS" -t "${KAFKA_JOB_TOPIC:-job-events}" -K '|' -X acks=all -X enable.idempotence=true
echo "$id"
