// policy_loss against plain loops. What rounding may do to a result is measured: each token is evaluated again with its
// log ratio, its row's ratio and its KL moved to either side, so that a clip's edge needs no rule of its own.
#include <tuple>
#include <utility>

#include "fuzz.h"
#include "policy/policy_loss.h"
#include "policy/policy_loss_check.h"

namespace fuzz {

struct PolicyToken {
  double loss, slope, kl, kl_slope;  // slope: through the ratio, or shared by the row; kl_slope: the token's own
  double low, high, dual, open;
};

struct PolicyProblem {
  warpup::PolicyOptions o;
  double weight = 1, penalty = 0, ref_kl = 0;

  double held(double v, double lo, double hi) const { return std::min(std::max(v, lo), hi); }

  // With the log ratio x, the formula's ratio q (one a row, or e^x), A, logp, d = ref - logp.
  PolicyToken token(double x, double q, double a, double lp, double d) const {
    PolicyToken t{};
    t.open = 1;
    if (o.formula == "clip") {
      const double top = a > 0 ? o.ceiling : o.ceiling_negative;
      const double c = a > 0 ? std::min(q, top) : held(q, o.floor, top);
      t = {-c * a,
           c == q ? -c * a : 0,
           0,
           0,
           double(a < 0 && q < o.floor),
           double(a > 0 && q > top),
           double(a < 0 && q > top),
           1};
    } else if (o.formula == "weighted") {
      const double c = held(q, o.floor, o.ceiling);
      t = {-c * a * lp, -c * a, 0, 0, double(a < 0 && q < o.floor), double(a > 0 && q > o.ceiling), 0, 1};
    } else if (o.formula == "sapo") {
      const double tau = a > 0 ? o.tau_positive : o.tau_negative, e = std::exp(tau * (1 - q)), s = 1 / (1 + e);
      t.loss = -4 / tau * s * a, t.slope = -4 * s * s * e * q * a;
    } else if (o.formula == "tv" || o.formula == "kl" || o.formula == "tv_both") {
      const double p = std::exp(lp), old = std::exp(lp - x), moved = p - old;
      const double rest = std::max(0.0, 1 - p), old_rest = std::max(0.0, 1 - old);
      const double kl = std::max(0.0, old_rest * std::log((old_rest + 1e-8) / (rest + 1e-8)) - old * x);
      const double far = o.formula != "kl" ? moved : moved > 0 ? kl : -kl;
      const bool both = o.formula == "tv_both";
      t.low = (both || a < 0) && far < o.floor, t.high = (both || a > 0) && far > o.ceiling;
      t.slope = t.low + t.high != 0 ? 0 : -std::min(q, o.cap) * a, t.loss = t.slope * lp;
    } else {
      t.loss = t.slope = -q * a;
      t.low = a < 0 && x < o.floor, t.high = a > 0 && x > o.ceiling;
      t.open = a != 0 && t.low + t.high == 0;
    }
    t.loss += penalty * std::fabs(x), t.slope += penalty * (x > 0 ? 1 : x < 0 ? -1 : 0);
    t.loss += o.proximal / 2 * x * x, t.slope += o.proximal * x;
    if (o.level != "gamma") t.loss *= weight, t.slope *= weight;
    kl(d, &t);
    if (o.kl_corrected) {
      const bool of_row = o.level == "sequence" || o.level == "sequence_token";
      const double c = of_row ? q : std::exp(x);
      t.kl *= c, t.kl_slope *= c;
      if (o.kl_coef != 0) (of_row ? t.slope : t.kl_slope) += t.kl;
    }
    return t;
  }

  // Without a coefficient it is a metric, which has no slope.
  void kl(double d, PolicyToken* t) const {
    const double y = o.kl == "k3_verl" ? held(d, -20, 20) : d, e = std::exp(y);
    const double k1 = -y, k2 = y * y / 2, k3 = e - y - 1;
    const double slope1 = 1, slope2 = -y, slope3 = 1 - e;
    if (o.kl == "k1") t->kl = k1, t->kl_slope = slope1;
    if (o.kl == "k2") t->kl = k2, t->kl_slope = slope2;
    if (o.kl == "k3") t->kl = k3, t->kl_slope = slope3;
    if (o.kl == "k1+") t->kl = k1, t->kl_slope = slope2;
    if (o.kl == "k3+") t->kl = k3, t->kl_slope = slope2;
    if (o.kl == "k3_verl") t->kl = std::min(k3, 10.0), t->kl_slope = y != d || k3 > 10 ? 0 : slope3;
    if (o.kl == "full") t->kl = ref_kl, t->kl_slope = 0;
    t->kl *= o.kl_coef != 0 ? o.kl_coef : 1, t->kl_slope *= o.kl_coef;
  }

  double row_term(double x, double a) const {
    if (o.level == "gamma") return held(x, -20, 20);
    if (o.level != "geometric") return x;
    return a > 0 ? std::min(x, o.ceiling) : a < 0 ? std::max(x, o.floor) : 0;
  }

  double ratio(double sum, double n, double a) const {
    const double mean = sum / std::max(n, 1.0), w = held(sum, std::log(1e-8), 20);
    const double k = a < 0 ? o.k_negative : o.k_positive;
    const double lambda = std::max(a < 0 ? o.lambda_negative : o.lambda_positive, 1e-4);
    if (o.level == "one") return 1;
    if (o.level == "sequence_token") return std::exp(std::min(mean, 10.0));
    if (o.level == "product") return std::exp(std::min(sum, 88.0));
    if (o.level == "gamma") return std::exp(lambda + k * w - lambda * std::exp(w));
    return std::exp(mean);
  }
};

inline warpup::PolicyOptions random_policy_options(bool with_ref, bool with_kl, bool with_entropy) {
  constexpr std::pair<const char*, const char*> kinds[] = {
      {"clip", "token"},          {"clip", "sequence"},    {"weighted", "token"}, {"clip", "sequence_token"},
      {"weighted", "one"},        {"weighted", "product"}, {"weighted", "gamma"}, {"sapo", "token"},
      {"geometric", "geometric"}, {"tv", "token"},         {"kl", "token"},       {"tv_both", "token"}};
  constexpr const char* estimators[] = {"k1", "k2", "k3", "k1+", "k3+", "k3_verl"};
  constexpr const char* normalizers[] = {"token", "sequence", "sequence_sum", "constant"};
  warpup::PolicyOptions o;
  std::tie(o.formula, o.level) = kinds[below(12)];
  const bool trust = o.formula == "tv" || o.formula == "kl" || o.formula == "tv_both";
  const bool log_range = trust || o.formula == "geometric";
  o.floor = (log_range ? 0 : 1) - below(4) / 10.0, o.ceiling = (log_range ? 0 : 1) + below(4) / 10.0;
  o.ceiling_negative = chance(0.5) ? kInf : o.ceiling + 0.5;
  for (double* c :
       {&o.tau_positive, &o.tau_negative, &o.k_positive, &o.lambda_positive, &o.k_negative, &o.lambda_negative}) {
    *c = 0.5 + below(5) / 2.0;
  }
  if (trust) o.cap = chance(0.5) ? kInf : 1.5;
  if (o.formula == "kl") o.floor -= 0.1, o.ceiling += 0.1;  // between equal probabilities it is rounding
  o.proximal = chance(0.2) ? 0.1 : 0;
  o.kl = with_kl ? "full" : estimators[below(6)];
  if (with_ref || with_kl) o.kl_coef = chance(0.8) ? 0.1 : 0, o.kl_corrected = chance(0.3);
  if (with_entropy) o.entropy_coef = 0.1;
  o.normalizer = normalizers[below(4)], o.denominator_scalar = chance(0.3) ? 0.5 + below(9) : 0;
  return o;
}

FUZZ(policy_loss) {
  const DType dtype = chance(0.5) ? DType::f32 : DType::f64;
  const bool is_packed = chance(0.4), per_token = chance(0.5), weight_per_token = chance(0.5);
  const bool with_ref = chance(0.4), with_kl = !with_ref && chance(0.3), with_entropy = chance(0.2);
  const bool with_denominator = chance(0.2), with_losses = chance(0.3), with_upstream = chance(0.2);
  const bool with_weights = chance(0.3), with_penalty = chance(0.2);
  const int64_t batch = below(6), length = chance(0.03) ? 8185 + below(20) : below(50);
  std::vector<int64_t> ends{0}, row_of;
  for (int64_t b = 0; b < batch; ++b) {
    ends.push_back(ends.back() + (!is_packed ? length : chance(0.3) ? 0 : below(length + 1)));
    row_of.resize(ends.back(), b);
  }
  const int64_t n = ends.back();
  const std::vector<int64_t> shape = is_packed ? std::vector<int64_t>{n} : std::vector<int64_t>{batch, length};
  const auto stream = [&](bool tokens) {
    // Packed, as many values as sequences are one a sequence.
    return random_layout(dtype, tokens ? shape : std::vector<int64_t>{batch}, tokens);
  };
  const bool ambiguous = is_packed && n == batch;
  Array lp = stream(true), old = stream(true), ref = stream(true), kl = stream(true), entropy = stream(true);
  Array upstream = stream(true), penalty = stream(true), adv = stream(per_token && !ambiguous),
        weights = stream(weight_per_token && !ambiguous);
  Array mask = random_layout(DType::u8, shape, true), offsets(DType::i64, {batch + 1});
  offsets.fill([&](int64_t b) { return double(ends[b]); });
  const auto at = [&](const Array& a, bool tokens, int64_t i) { return a[tokens && !ambiguous ? i : row_of[i]]; };
  const double kept = std::array{0.0, 0.5, 1.0}[below(3)], apart = std::array{0.0, 0.05, 1.0}[below(3)];
  const auto masked = [&](int64_t i) { return mask[i] == 0; };
  const auto unread = [&](int64_t i, double x) { return masked(i) && chance(0.5) ? std::nan("") : x; };
  mask.fill([&](int64_t) { return chance(kept) ? 1 + below(255) : 0; });
  lp.fill([&](int64_t i) { return unread(i, std::min(normal() - 1, -0.01)); });  // near 1, 1 - p is rounding
  old.fill([&](int64_t i) { return unread(i, masked(i) ? 0 : lp[i] + normal(apart)); });
  ref.fill([&](int64_t i) { return unread(i, masked(i) ? 0 : lp[i] + normal(apart)); });
  for (Array* a : {&kl, &entropy, &penalty}) a->fill([&](int64_t i) { return unread(i, std::fabs(normal())); });
  upstream.fill([&](int64_t i) { return unread(i, normal()); });
  adv.fill([&](int64_t i) { return per_token && !ambiguous ? unread(i, normal()) : normal(); });
  weights.fill([&](int64_t i) { return weight_per_token && !ambiguous ? unread(i, 0.5 + chance(0.5)) : 0.7; });

  PolicyProblem problem{random_policy_options(with_ref, with_kl, with_entropy)};
  warpup::PolicyOptions& o = problem.o;
  if (is_packed && o.normalizer == "constant") o.normalizer = "token";
  Array denominator(DType::f32, {});
  denominator.set(0, 0.5 + below(9));
  const auto optional = [](bool given, const Array& a) {
    return given ? warpup::OptionalView(a.view()) : std::nullopt;
  };
  const auto offsets_view = optional(is_packed, offsets);
  Array loss(dtype, {}), metrics(dtype, {warpup::kPolicyMetrics}), state(dtype, {batch, warpup::kPolicyState});
  Array partials(dtype, {warpup::policy_slots(lp, offsets_view), warpup::kPolicyScratch});
  const warpup::PolicyInputs inputs{.logp = lp,
                                    .old_logp = old,
                                    .advantages = adv,
                                    .mask = mask,
                                    .ref_logp = optional(with_ref, ref),
                                    .weights = optional(with_weights, weights),
                                    .penalty = optional(with_penalty, penalty),
                                    .ref_kl = optional(with_kl, kl),
                                    .entropy = optional(with_entropy, entropy),
                                    .upstream = optional(with_upstream, upstream),
                                    .cu_seqlens = offsets_view};
  Array losses(dtype, shape);
  warpup::policy_loss(inputs, o, optional(with_denominator, denominator), loss, metrics, state, partials,
                      optional(with_losses, losses));

  const double eps = epsilon_of(dtype);
  const auto factor = [&](int64_t i) { return with_upstream ? upstream[i] : 1.0; };
  const bool spread = o.level == "sequence" || o.level == "geometric";
  std::vector<double> count(batch), sum(batch), sum_error(batch), shared(batch), shared_error(batch);
  std::vector<PolicyToken> token(n), error(n);
  const auto error_of_x = [&](int64_t i) { return 4 * eps * (1 + std::fabs(lp[i]) + std::fabs(lp[i] - old[i])); };
  for (int64_t i = 0; i < n; ++i) {
    if (masked(i)) continue;
    const int64_t b = row_of[i];
    const double term = problem.row_term(lp[i] - old[i], at(adv, per_token, i));
    const bool weighs = with_weights && weight_per_token && !ambiguous && o.level == "gamma";
    const double log_weight = weighs ? std::log(weights[i]) : 0;
    count[b] += 1, sum[b] += term + log_weight;
    sum_error[b] += 2 * error_of_x(i) + 8 * eps * (std::fabs(term) + std::fabs(log_weight));
  }
  for (int64_t b = 0; b < batch; ++b) {
    const bool weighs = with_weights && (!weight_per_token || ambiguous) && o.level == "gamma";
    if (weighs) sum[b] += std::log(weights[b]);
    sum_error[b] = sum_error[b] * (1 + count[b] / 64) + 8 * eps;
  }
  double tokens = 0, sequences = 0, ratio = 0, ratio_error = 0, ratio_max = 0, approx = 0, approx_error = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (masked(i)) continue;
    const int64_t b = row_of[i];
    const double x = lp[i] - old[i], dx = error_of_x(i), a = at(adv, per_token, i);
    problem.weight = with_weights ? at(weights, weight_per_token, i) : 1;
    problem.penalty = with_penalty ? penalty[i] : 0, problem.ref_kl = with_kl ? kl[i] : 0;
    const auto q = [&](double side) {
      const double v =
          o.level == "token" ? std::exp(x + side * dx) : problem.ratio(sum[b] + side * sum_error[b], count[b], a);
      return v * (1 + side * 8 * eps);
    };
    const double d = with_ref ? ref[i] - lp[i] : 0;
    const double dd = with_ref ? 4 * eps * (1 + std::fabs(lp[i]) + std::fabs(d)) : 0;
    const PolicyToken middle = token[i] = problem.token(x, q(0), a, lp[i], d);
    PolicyToken& e = error[i];
    const double r = std::exp(x), kl_size = (o.kl_coef != 0 ? o.kl_coef : 1) *
                                            (std::exp(d) + std::fabs(d) + 1 + d * d) * (o.kl_corrected ? r + q(0) : 1);
    e.loss = 16 * eps * std::fabs(middle.loss), e.slope = 16 * eps * (std::fabs(middle.slope) + problem.penalty);
    e.kl = 16 * eps * (std::fabs(middle.kl) + kl_size), e.kl_slope = e.kl + 16 * eps * std::fabs(middle.kl_slope);
    if (o.kl_corrected && o.kl_coef != 0) e.slope += e.kl;
    for (const double sx : {-1.0, 0.0, 1.0}) {
      for (const double sq : {-1.0, 0.0, 1.0}) {
        for (const double sd : {-1.0, 1.0}) {
          const PolicyToken t = problem.token(x + sx * dx, q(sq), a, lp[i], d + sd * dd);
          const auto widen = [&](double PolicyToken::* m) { e.*m = std::max(e.*m, 2 * std::fabs(t.*m - middle.*m)); };
          for (const auto m : {&PolicyToken::loss, &PolicyToken::slope, &PolicyToken::kl, &PolicyToken::kl_slope,
                               &PolicyToken::low, &PolicyToken::high, &PolicyToken::dual, &PolicyToken::open}) {
            widen(m);
          }
        }
      }
    }
    // Both at once, and the roundings of the formula beside them.
    e.loss += 16 * eps * std::fabs(middle.loss), e.slope += 16 * eps * std::fabs(middle.slope);
    e.kl += 16 * eps * kl_size, e.kl_slope += 16 * eps * kl_size;
    if (with_upstream) {
      for (const auto m : {&PolicyToken::loss, &PolicyToken::slope, &PolicyToken::kl, &PolicyToken::kl_slope}) {
        e.*m = std::fabs(upstream[i]) * (e.*m + 4 * eps * std::fabs(middle.*m)), token[i].*m *= upstream[i];
      }
    }
    tokens += 1, ratio += q(0), ratio_max = std::max(ratio_max, q(0));
    ratio_error += std::fabs(q(1) - q(-1)) + 8 * eps * q(0) + 1e-37;  // float32 has no less
    approx += r - 1 - x, approx_error += (8 + 2 * std::fabs(x)) * eps * (r + 1 + std::fabs(x)) + r * dx;
    shared[b] += token[i].slope, shared_error[b] += e.slope + eps * count[b] / 16 * std::fabs(token[i].slope);
  }
  for (const double c : count) sequences += c > 0;
  const double counted = o.normalizer == "token" ? tokens : o.normalizer == "constant" ? double(n) : sequences;
  const double divided = with_denominator ? denominator[0] : o.denominator_scalar != 0 ? o.denominator_scalar : counted;
  const double summing = 8 * eps * (1 + double(length) / 64), m = tokens > 0 ? tokens : 1;
  double total = 0, total_error = 0, want_metrics[9] = {tokens}, near[9] = {};
  std::vector<double> w(batch);
  for (int64_t b = 0; b < batch; ++b) {
    w[b] = count[b] > 0 ? 1 / (o.normalizer == "sequence" ? divided * count[b] : divided) : 0;
    if (count[b] > 0) shared[b] /= count[b], shared_error[b] /= count[b];
  }
  for (int64_t i = 0; i < n; ++i) {
    if (masked(i)) continue;
    const PolicyToken &t = token[i], &e = error[i];
    const double h = with_entropy ? entropy[i] * factor(i) : 0, bonus = -o.entropy_coef * h;
    const double in_loss = o.kl_coef != 0 ? 1 : 0;
    const double size = std::fabs(t.loss) + in_loss * std::fabs(t.kl) + std::fabs(bonus);
    total += w[row_of[i]] * (t.loss + in_loss * t.kl + bonus);
    total_error += w[row_of[i]] * (e.loss + in_loss * e.kl + summing * size);
    const double coef = o.kl_coef != 0 ? o.kl_coef : 1;  // in t.kl, not in the metric
    const double parts[] = {t.low, t.high, t.dual, 0, 0, 0, t.kl / coef, h};
    const double errors[] = {
        e.low, e.high, e.dual, 0, 0, 0, (e.kl + summing * std::fabs(t.kl)) / coef, summing * std::fabs(h)};
    for (int k = 0; k < 8; ++k) want_metrics[k + 1] += parts[k], near[k + 1] += errors[k];
  }
  for (const int k : {1, 2, 3, 7, 8})
    want_metrics[k] /= m, near[k] = near[k] / m + 8 * eps * std::fabs(want_metrics[k]);
  want_metrics[4] = ratio / m, want_metrics[5] = ratio_max, want_metrics[6] = approx / m;
  near[4] = 2 * (ratio_error + summing * ratio) / m, near[5] = ratio_error + 8 * eps * ratio_max;
  near[6] = approx_error * (1 + double(length) / 64) / m;
  expect_near(loss, [&](int64_t) { return total; }, [&](int64_t) { return 2 * total_error; }, "policy_loss: loss");
  expect_near(
      metrics, [&](int64_t k) { return want_metrics[k]; }, [&](int64_t k) { return near[k]; }, "policy_loss: metrics");
  for (int64_t b = 0; b < batch; ++b) {
    expect(std::fabs(state[4 * b] - w[b]) <= 4 * eps * w[b], "policy_loss: weight of a row");
  }

  if (with_losses) {
    const double counts_kl = o.kl_coef != 0 ? 1 : 0;
    const auto bonus = [&](int64_t i) { return with_entropy ? -o.entropy_coef * entropy[i] * factor(i) : 0.0; };
    expect_near(
        losses, [&](int64_t i) { return masked(i) ? 0 : token[i].loss + counts_kl * token[i].kl + bonus(i); },
        [&](int64_t i) { return error[i].loss + counts_kl * error[i].kl + 8 * eps * std::fabs(bonus(i)); },
        "policy_loss: losses");
  }

  Array g(dtype, {}), grad(dtype, shape), grad_kl(dtype, shape), grad_entropy(dtype, shape);
  g.set(0, normal());
  warpup::policy_loss_backward(inputs, o, state, g, grad, optional(with_kl, grad_kl),
                               optional(with_entropy, grad_entropy));
  const auto passes = [&](int64_t b) { return o.level != "sequence_token" || sum[b] <= 10 * count[b]; };
  const auto of_ratio = [&](int64_t i) {
    return spread ? shared[row_of[i]] * token[i].open : passes(row_of[i]) ? token[i].slope : 0.0;
  };
  expect_near(
      grad, [&](int64_t i) { return masked(i) ? 0 : g[0] * w[row_of[i]] * (of_ratio(i) + token[i].kl_slope); },
      [&](int64_t i) {
        const int64_t b = row_of[i];
        const double shared_part = shared_error[b] + std::fabs(shared[b]) * error[i].open;
        const double slack = 8 * eps * (std::fabs(of_ratio(i)) + std::fabs(token[i].kl_slope));
        return masked(i)
                   ? 0
                   : std::fabs(g[0]) * w[b] * ((spread ? shared_part : error[i].slope) + error[i].kl_slope + slack);
      },
      "policy_loss_backward");
  if (with_entropy) {
    expect_near(
        grad_entropy, [&](int64_t i) { return masked(i) ? 0 : g[0] * w[row_of[i]] * factor(i) * -o.entropy_coef; },
        [&](int64_t i) { return masked(i) ? 0 : 8 * eps * std::fabs(g[0] * w[row_of[i]] * factor(i)); },
        "policy_loss_backward: entropy");
  }
}

}  // namespace fuzz
