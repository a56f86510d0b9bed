// What the elements of a row need of each other, for one of its bounds: x is the end of the box that they compete with.
#pragma once

#include "core/math.h"
#include "interval/interval_softmax.h"

namespace warpup {

template <class Acc>
struct Largest {
  Acc max = -kInf<Acc>, second = -kInf<Acc>;
  int64_t at = -1;  // of max, the first; -1: every x is -inf or NaN
};

// own / (own + others) of positive numbers that are given as e^(own - shift) and others e^-shift.
template <class Acc>
struct Share {
  Acc value, complement, others;
};

template <class Acc>
struct Competition {
  Acc max, second;
  int64_t at;
  Acc ratio;     // e^(second - max)
  Acc rest = 0;  // sum over j != at of e^(x[j] - second), to be filled in

  WARPUP_HD explicit Competition(const Largest<Acc>& found) : max(found.max), second(found.second), at(found.at) {
    const bool alone = second == -kInf<Acc>;
    ratio = alone ? Acc(0) : exp_neg(second - max);
    if (alone) second = at < 0 ? Acc(0) : max;  // any finite shift
  }

  WARPUP_HD bool empty() const { return at < 0 && rest == 0; }
  WARPUP_HD Acc uncontested(Acc own) const { return own == -kInf<Acc> ? Acc(0) : Acc(1); }  // where empty()
  WARPUP_HD Acc term(Acc x, int64_t j) const { return j == at ? Acc(0) : exp_neg(x - second); }

  WARPUP_HD Share<Acc> share(Acc own, Acc term, int64_t i) const {  // term: term(x, i)
    const bool top = i == at;
    const Acc others = top ? rest : 1 + (rest - term) * ratio;
    const Acc a = own - (top ? second : max), t = exp_neg(a < 0 ? a : -a);
    const Acc part = a < 0 ? t : Acc(1), against = a < 0 ? others : others * t, sum = part + against;
    return others == 0 ? Share<Acc>{1, 0, 0} : Share<Acc>{part / sum, against / sum, others};
  }
};

// The lower bound; where two bounds so near that their roundings change places are those of a box, the upper one.
template <class Acc>
WARPUP_HD Acc in_order(Acc l, Acc u, Acc lower, Acc upper) {
  return l <= u && lower > upper ? Acc(upper) : Acc(lower);
}

template <class Acc>
WARPUP_HD Largest<Acc> merged(const Largest<Acc>& a, const Largest<Acc>& b) {
  const bool first = a.max > b.max || (a.max == b.max && (b.at < 0 || (a.at >= 0 && a.at < b.at)));
  const Largest<Acc>&winner = first ? a : b, &loser = first ? b : a;
  return {winner.max, winner.second > loser.max ? winner.second : loser.max, winner.at};
}

}  // namespace warpup
