#!/bin/sh
# Static analysis of src/ with cppcheck. Suppressions, each for a reason:
#   missingIncludeSystem   system headers are not its business
#   normalCheckLevelMaxBranches  an information about its own depth, not a finding
set -eu
cd "$(dirname "$0")/.."
exec cppcheck --quiet --std=c11 --language=c --enable=warning,performance,portability \
  --inline-suppr --error-exitcode=1 --suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches \
  -DWAN_HAVE_CPU -DWAN_HAVE_IMAGES -DWAN_HAVE_FFMPEG -DWAN_HAVE_SENTENCEPIECE -DWAN_HAVE_CURL \
  -I include -I src -j 2 $(git ls-files 'src/*.c' | grep -v /tables/)
