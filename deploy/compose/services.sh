#!/bin/sh
# The services that the drivers of compose.yaml register for; one that is there stays as it is.
set -eu
service() { # NAME APP [OPTION…]
  name=$1 app=$2
  shift 2
  oca service get "$name" >/dev/null 2>&1 || oca service create "$name" --app "$app" --runtime attached "$@"
}
service records sql
service classifier onnx
service transcoder ffmpeg
