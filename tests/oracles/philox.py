"""Philox4x32-10 one counter at a time, in Python integers, after section 3.3 of Salmon et al., SC 2011."""


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    word = 2**32
    first, second, third, fourth = counter
    left_key, right_key = key
    for turn in range(10):
        if turn:
            left_key, right_key = (left_key + 0x9E3779B9) % word, (right_key + 0xBB67AE85) % word
        high_a, low_a = divmod(0xD2511F53 * first, word)
        high_b, low_b = divmod(0xCD9E8D57 * third, word)
        first, second, third, fourth = high_b ^ second ^ left_key, low_b, high_a ^ fourth ^ right_key, low_a
    return [first, second, third, fourth]
