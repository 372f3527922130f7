// What the C++ program of the cards uses of onnxruntime, declared by hand after its public documentation and without a body:
// enough to check the syntax and the types of the program where the real header is not at hand, and not enough to run it.
// tests/test_card_cpp.py prefers the real one ($ONNXRUNTIME_CPP/include).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#define ORT_TSTR(X) X
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
struct OrtMemoryInfo;

namespace Ort {
struct Env {
  Env(OrtLoggingLevel level, const char* name);
};
struct SessionOptions {
  SessionOptions();
};
struct RunOptions {
  explicit RunOptions(std::nullptr_t);
};
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType type);
  operator const OrtMemoryInfo*() const;
};
struct Value {
  Value(const Value&) = delete;
  Value(Value&&);
  template <typename T>
  static Value CreateTensor(const OrtMemoryInfo* info, T* data, size_t count, const int64_t* shape, size_t rank);
  template <typename T>
  const T* GetTensorData() const;
};
struct Session {
  Session(const Env& env, const char* path, const SessionOptions& options);
  std::vector<Value> Run(const RunOptions& options, const char* const* inputs, const Value* values, size_t num_inputs,
                         const char* const* outputs, size_t num_outputs);
};
}  // namespace Ort
