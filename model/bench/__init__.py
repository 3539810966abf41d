"""The engine beside what else embeds the same texts with the same model, on this machine: `python -m model.bench`.

Needs torch, transformers, tokenizers, numpy and safetensors; each peer that is installed takes part, the others' keys
say why not. Every contestant runs in a process of its own, in turns with ours; texts are cut to 128 tokens, where the
naive loop stops reading, so that all read the same. Keys:

    texts_per_s, naive_texts_per_s, ratio   over all texts; the ratio is the median of rounds taken in turns. The naive
                                            loop pads to 128, batches of 16, float32, transformers' own forward
    processes                               engine processes that these are of: one with all cores or one a core,
                                            whichever was faster (one_process_texts_per_s, pool_texts_per_s)
    agreement, cosine_min, cosine_mean      with transformers' float32 forward over padded texts: the lowest share of
                                            texts with the same best label over the tasks of agreement_by
    CORPUS_texts_per_s, ..., CORPUS_ratio   the same by corpus
    tokens_per_text, flop_bound             128 / tokens: the most that leaving out padding alone can give
    gemm_peak_gflops, gemm_peak_share       the fastest product that torch computes here (float32; bfloat16 on CUDA),
                                            and the share of it that our texts' flops come to
    device_peak_gflops, device_peak_share   the same of what the device's maker gives for bfloat16 (CUDA)
    peers                                   each with its rate, agreement, best batch, and how many times faster ours is
    best_equal_peer, best_equal_peer_ratio  the fastest of agreement 0.995 or more
    p50_ms, p99_ms                          of one call, by texts in it; rss_mb: memory of ours after all of them
    soak_p99_over_median, soak_rss_mb       windows of 64 for soak_s seconds; memory at the beginning, most, at the end
    repeat_ratio                            order lines as they come, with the memory of texts, beside the naive loop
"""
