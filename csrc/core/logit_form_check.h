// From the options scale and softcap (0: none) to `core/logit_form.h`.
#pragma once

#include "core/logit_form.h"
#include "core/option_check.h"

namespace warpup {

struct LogitFormOptions {
  double scale = 1, softcap = 0;
};

// `prefix` of the options' names in messages: "teacher_".
template <class Acc>
LogitForm<Acc> logit_form(const char* op, const LogitFormOptions& options, const char* prefix = "") {
  const auto check = [&](const char* name, double value) {
    divisor_option<Acc>(op, (std::string(prefix) + name).c_str(), value);
  };
  check("scale", options.scale);
  if (options.softcap != 0) check("softcap", options.softcap);
  return {static_cast<Acc>(options.scale), static_cast<Acc>(options.softcap)};
}

}  // namespace warpup
