#!/usr/bin/env bash
# What each of limner's users may do in Kafka, and no more. Run it once, as a user who may alter ACLs; again after an
# upgrade. Topics are made by such a user too: `limner topics`.
#
#   BOOTSTRAP=kafka:9093 CONFIG=admin.properties deploy/acl/kafka.sh
#
# BOOTSTRAP   a broker's HOST:PORT
# CONFIG      Kafka's own client properties of the user who runs this
# KAFKA_ACLS  the program, kafka-acls.sh of Kafka's distribution unless set
# LIMNER_GROUP, LIMNER_CHAT_TOPIC, ...   as limner's settings, where they are set
set -euo pipefail

chat=${LIMNER_CHAT_TOPIC:-chat-events}
order=${LIMNER_ORDER_TOPIC:-order-events}
deltas=${LIMNER_DELTA_TOPIC:-profile-deltas}
dead=${LIMNER_DEAD_LETTER_TOPIC:-dead-letters}
controls=${LIMNER_CONTROL_TOPIC:-customer-controls}
group=${LIMNER_GROUP:-limner}
labels=${LIMNER_LABEL_TOPIC:-labels}
models=${LIMNER_MODEL_TOPIC:-model-updates}

allow() {  # USER ARGS...
  "${KAFKA_ACLS:-kafka-acls.sh}" --bootstrap-server "$BOOTSTRAP" --command-config "$CONFIG" \
    --add --force --allow-principal "User:$1" "${@:2}"
}

# Reads events and controls, and how long events are kept (it stands in an erasure's receipt).
allow limner-worker --operation Read --operation Describe --operation DescribeConfigs \
  --topic "$chat" --topic "$order"
# Writes deltas and dead letters; an erasure finds and deletes a customer's own there and among the controls.
allow limner-worker --operation Read --operation Write --operation Describe \
  --topic "$deltas" --topic "$dead" --topic "$controls"
# To look for a customer's records it names a second group, and commits nothing to it.
allow limner-worker --operation Read --group "$group" --group "$group-search"

# Takes events over HTTP.
allow limner-service --operation Write --operation Describe --topic "$chat" --topic "$order"

# `limner load`: sends files of events, after a look whether all topics are there.
allow limner-loader --operation Write --operation Describe --topic "$chat" --topic "$order"
allow limner-loader --operation Describe --topic "$deltas" --topic "$dead" --topic "$controls"

# Reads labels, announces models.
allow limner-trainer --operation Read --operation Describe --topic "$labels" --group "$group-trainer"
allow limner-trainer --operation Write --operation Describe --topic "$models"
