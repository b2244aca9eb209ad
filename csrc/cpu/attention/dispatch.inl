// Which of the two layouts a problem is worked on in: rows as lanes, or a key's numbers as lanes.

// Zero weights times NaN would show where a hidden key holds it; only the layout by rows knows how to avoid that.
template <class T>
bool may_hide_nonfinite(const AttentionParams<T>& p, const Problem<T>& problem) {
  return may_hide(p) && !(all_finite(p, problem, p.key, p.dim) && all_finite(p, problem, p.value, p.value_dim));
}

template <class T, class Few, class Many, class Params>
void dispatch(const Params& params, const AttentionRange& range) {
  const AttentionParams<T>& p = params.attention;
  if (!few_rows_pay(p)) {
    Many(params).run(range);
    return;
  }
  Few few(params);
  for (int64_t i = range.first_problem; i < range.last_problem; ++i) {
    const Problem<T> problem(p, i);
    if (may_hide_nonfinite(p, problem)) {
      Many(params).run({i, i + 1, range.first_rows, range.last_rows, range.first_keys, range.last_keys});
    } else {
      few.run(problem);
    }
  }
}

template <class T>
void attention_forward(const AttentionForwardParams<T>& params, const AttentionRange& range) {
  dispatch<T, FewRowsForward<T>, AttentionForward<T>>(params, range);
}

template <class T>
void attention_backward(const AttentionBackwardParams<T>& params, const AttentionRange& range) {
  dispatch<T, FewRowsBackward<T>, AttentionBackward<T>>(params, range);
}
