// sentencepiece_shim.cpp: no exception and no line on stderr leaves this file.
#ifdef WAN_HAVE_SENTENCEPIECE
#include "text/sentencepiece_shim.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include <sentencepiece_processor.h>

namespace sentencepiece::logging {
void SetMinLogLevel(int v); // exported by the library; its installed header leaves it out
}

struct sentencepiece_model {
  sentencepiece::SentencePieceProcessor processor;
};

namespace {

constexpr int kLogFatal = 3;

void tell(char *message, size_t size, const char *text) {
  std::snprintf(message, size, "%s", text);
}

} // namespace

sentencepiece_model *sentencepiece_open(const void *data, size_t size, char *message, size_t message_size) {
  try {
    sentencepiece::logging::SetMinLogLevel(kLogFatal);
    auto model = std::make_unique<sentencepiece_model>();
    const auto status = model->processor.LoadFromSerializedProto({static_cast<const char *>(data), size});
    if (status.ok()) return model.release();
    tell(message, message_size, status.ToString().c_str());
  } catch (const std::exception &e) {
    tell(message, message_size, e.what());
  } catch (...) {
    tell(message, message_size, "unknown exception");
  }
  return nullptr;
}

void sentencepiece_close(sentencepiece_model *m) {
  delete m;
}

int sentencepiece_encode(sentencepiece_model *m, const char *text, size_t n, int32_t *ids, int room,
                         char *message, size_t message_size) {
  try {
    std::vector<int> found;
    const auto status = m->processor.Encode({text, n}, &found);
    if (status.ok()) {
      const size_t count = std::min(found.size(), static_cast<size_t>(room));
      std::copy_n(found.begin(), count, ids);
      return static_cast<int>(count);
    }
    tell(message, message_size, status.ToString().c_str());
  } catch (const std::exception &e) {
    tell(message, message_size, e.what());
  } catch (...) {
    tell(message, message_size, "unknown exception");
  }
  return -1;
}
#endif
