#!/usr/bin/env bash
# What every client does, by curl alone: register a service, predict, run a job and watch it to its end, read an error, cancel, upload and
# download an artifact.
#
#   scenario.sh URL IMAGE      URL of the REST front, as http://127.0.0.1:8000; a photo of a cat. ONECONTAINER_TOKEN, if one is needed.
set -euo pipefail
URL=$1 IMAGE=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

oca() { # METHOD PATH [CURL OPTIONS]: the body on stdout; fails with the problem on an HTTP error
  curl -sS --fail-with-body ${ONECONTAINER_TOKEN:+-H "Authorization: Bearer $ONECONTAINER_TOKEN"} -X "$1" "$URL$2" "${@:3}"
}
field() { python3 -c 'import json, sys; print(eval("found" + sys.argv[1], {"found": json.load(sys.stdin)}))' "$1"; }
said() { printf '%-12s %s\n' "$1" "$2"; }

# Register, and wait until it is READY.
oca POST '/v1/services?serviceId=curl-cats' -d '{"app": "onnx"}' >"$work/service"
for _ in $(seq 240); do
  state=$(oca GET /v1/services/curl-cats | field '["state"]')
  [ "$state" = SERVICE_STATE_READY ] && break
  sleep 0.5
done
said service "$state"

# Predict: the photo as it is.
label=$(oca POST '/v1/services/curl-cats/ai:predict?output.topK=1' -H 'Content-Type: image/png' --data-binary "@$IMAGE" |
  field '["predictions"][0]["classification"]["classes"][0]["label"]')
said predict "$label"

# Upload, and download a part and the whole.
artifact=$(oca PUT '/v1/artifacts?filename=cat.png' -T "$IMAGE" | field '["name"]')
oca GET "/v1/$artifact:download" -o "$work/whole"
oca GET "/v1/$artifact:download" -r 0-7 -o "$work/part"
cmp "$IMAGE" "$work/whole"
said artifact "$(head -c 4 "$work/part" | tail -c 3)"

# A job, watched to its end.
batch() { # COUNT: asks about the artifact so many times
  python3 -c 'import json, sys; print(json.dumps({"source": {"artifacts": {"names": [sys.argv[1]] * int(sys.argv[2])}}}))' "$artifact" "$1" |
    oca POST /v1/services/curl-cats/ai:batchPredict -d @- | field '["name"]'
}
job=$(batch 2)
state=$(oca GET "/v1/$job:watch" -N | tail -n 1 | field '["result"]["update"]["job"]["state"]')
said job "$state"

# An error, by its reason.
oca GET /v1/services/nobody >"$work/problem" 2>"$work/curl" && exit 1
said error "$(field '["reason"]' <"$work/problem")"

# Cancel: a job that would take minutes.
job=$(batch 20000)
oca POST "/v1/$job:cancel" -d '{}' >"$work/cancelled"
said cancel "$(oca GET "/v1/$job:wait" | field '["state"]')"

oca DELETE '/v1/services/curl-cats?force=true' >"$work/deleted"
said deleted "$(cat "$work/deleted")"
