// DType as cuSPARSELt and messages see it.
#pragma once

#include "../sparse24.h"
#include "abi.h"

namespace sparse24::cusparselt {

struct TypeTraits {
  const char* name;  // torch's
  int size;
  abi::DataType type;
};

constexpr TypeTraits traits(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return {"float32", 4, abi::kReal32F};
    case DType::kFloat16: return {"float16", 2, abi::kReal16F};
    case DType::kBFloat16: return {"bfloat16", 2, abi::kReal16BF};
    case DType::kInt8: return {"int8", 1, abi::kReal8I};
    case DType::kFloat8E4M3: return {"float8_e4m3fn", 1, abi::kReal8FE4M3};
    case DType::kFloat8E5M2: return {"float8_e5m2", 1, abi::kReal8FE5M2};
    case DType::kInt32: return {"int32", 4, abi::kReal32I};
  }
  return {"unknown dtype", 1, abi::kReal32F};
}

constexpr const char* name_of(DType dtype) { return traits(dtype).name; }
constexpr int size_of(DType dtype) { return traits(dtype).size; }

}  // namespace sparse24::cusparselt
