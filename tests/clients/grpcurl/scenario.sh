#!/usr/bin/env bash
# The scenario with grpcurl, from reflection alone: scenario.sh ADDRESS PICTURE CLIP. Says what came of it as JSON.
#
# It is the same in each language: registers two services, uploads and downloads a clip, classifies a picture, transcodes the clip
# and watches that job to its end, gets an error and cancels a job. Needs grpcurl, jq and coreutils.
set -euo pipefail

ADDRESS=$1 PICTURE=$2 CLIP=$3
CLASSIFIER=services/grpcurl-classifier
FILMS=services/grpcurl-films
API=onecontainer.api
MANAGEMENT=$API.management.v1.ManagementService
INFERENCE=$API.ai.v1.InferenceService
MEDIA=$API.media.v1.MediaService
JOBS=$API.job.v1.JobService
ARTIFACTS=$API.artifact.v1.ArtifactService
CHUNK_BYTES=49152 # a multiple of 3: pieces of base64 without padding

FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT

# call METHOD [OPTION…]: the requests are on stdin, the responses on stdout, one JSON object after the other.
call() { grpcurl -plaintext -max-time 180 -d @ "${@:2}" "$ADDRESS" "$1"; }

# region register
# register NAME APP: creates a service and waits until it is READY.
register() {
  jq -n --arg id "${1#services/}" --arg app "$2" '{service_id: $id, service: {app: $app}}' |
    call $MANAGEMENT/CreateService >/dev/null
  local state=
  until [ "$state" = SERVICE_STATE_READY ]; do
    state=$(jq -n --arg name "$1" '{name: $name}' | call $MANAGEMENT/GetService | jq -r .state)
    [ "$state" != SERVICE_STATE_FAILED ] || { echo "$1 has FAILED" >&2; return 1; }
    sleep 0.5
  done
}
# endregion

# region upload
# The digest that `sha256sum` says, as JSON has bytes.
to_base64() { printf '%b' "$(cut -c-64 | sed 's/../\\x&/g')" | base64 -w0; }

# upload FILE: stores it, piece by piece, and says the artifact's name; the gateway refuses it if the digest is another.
upload() {
  {
    jq -n --arg name "$(basename "$1")" --arg digest "$(sha256sum "$1" | to_base64)" \
      '{header: {filename: $name, sha256: $digest}}'
    base64 -w $((CHUNK_BYTES / 3 * 4)) "$1" | jq -R '{data: .}'
  } | call $ARTIFACTS/Upload | jq -r .name
}
# endregion

# region download
# download NAME: reads an artifact and says its SHA-256, which is compared with what the gateway says.
download() {
  jq -n --arg name "$1" '{name: $name}' | call $ARTIFACTS/Download >"$FOLDER/parts"
  local promised digest
  promised=$(jq -r '.artifact.sha256 // empty' "$FOLDER/parts" | head -n 1 | base64 -d | od -An -v -tx1 | tr -d ' \n')
  digest=$(jq -r '.data // empty' "$FOLDER/parts" | while read -r data; do base64 -d <<<"$data"; done | sha256sum | cut -c-64)
  [ "$digest" = "$promised" ] || { echo "$1 came with other bytes than it has" >&2; return 1; }
  echo "$digest"
}
# endregion

# region predict
# predict SERVICE PICTURE: classifies it and says the best label.
predict() {
  base64 -w0 "$2" | jq -R --arg service "$1" '{service: $service, inputs: [{image: .}]}' |
    call $INFERENCE/Predict | jq -r '.predictions[0].classification.classes[0].label'
}
# endregion

# transcode CLIP PLAYS: starts a job that makes an MKV of a clip, at the pace of playing, and says its name.
transcode() {
  jq -n --arg service $FILMS --arg clip "$1" --argjson extra $(($2 - 1)) '{
    service: $service,
    inputs: [{source: {artifact: $clip}, extra_plays: $extra, real_time: true}],
    outputs: [{key: "main", file: {container: "mkv"}}]
  }' | call $MEDIA/RunPipeline | jq -r .name
}

# region watch
# watch JOB: watches it to its end; the stream ends with it. Says all updates.
watch() { jq -n --arg name "$1" '{name: $name}' | call $JOBS/WatchJob; }
# endregion

# region error
# reason_of FILE: what went wrong, for programs: the ErrorInfo in the details of a status that `grpcurl -format-error` wrote.
reason_of() { jq '.details[] | select(.["@type"] == "type.googleapis.com/google.rpc.ErrorInfo")' "$1"; }
# endregion

# region cancel
# cancel JOB: waits until it runs, and cancels it; says the state it ended in.
cancel() {
  local state=
  until [ -n "$state" ] && [ "$state" != JOB_STATE_QUEUED ]; do
    state=$(jq -n --arg name "$1" '{name: $name}' | call $JOBS/GetJob | jq -r .state)
    sleep 0.2
  done
  jq -n --arg name "$1" '{name: $name, mode: "CANCEL_MODE_ABORT"}' | call $JOBS/CancelJob >/dev/null
  watch "$1" | jq -rs 'last.update.job.state'
}
# endregion

register $CLASSIFIER onnx
register $FILMS ffmpeg
uploaded=$(upload "$CLIP")
job=$(transcode "$uploaded" 1)
watch "$job" >"$FOLDER/updates"
made=$(jq -rs 'last.update.job.result.outputs[0].files[0].artifact' "$FOLDER/updates")
if jq -n '{service: "services/nobody", inputs: [{text: "?"}]}' | call $INFERENCE/Predict -format-error 2>"$FOLDER/error"; then
  echo "a service that is not there has answered" >&2
  exit 1
fi
info=$(reason_of "$FOLDER/error")
cancelled=$(transcode "$uploaded" 1000)
cancelled_state=$(cancel "$cancelled")
label=$(predict $CLASSIFIER "$PICTURE")
uploaded_sha256=$(download "$uploaded")
made_sha256=$(download "$made")
for name in $CLASSIFIER $FILMS; do
  jq -n --arg name $name '{name: $name}' | call $MANAGEMENT/DeleteService >/dev/null
done
jq -cs --arg best "$label" --arg uploaded "$uploaded" --arg uploaded_sha256 "$uploaded_sha256" --arg job "$job" \
  --arg made "$made" --arg made_sha256 "$made_sha256" --argjson info "$info" --arg cancelled "$cancelled" \
  --arg cancelled_state "$cancelled_state" '{
    label: $best, $uploaded, $uploaded_sha256, $job, job_state: last.update.job.state,
    progress_updates: map(select(.update.job.progress)) | length,
    $made, $made_sha256, reason: $info.reason, domain: $info.domain, $cancelled, $cancelled_state
  }' "$FOLDER/updates"
