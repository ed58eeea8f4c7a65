"""Every scheduler of torch with its options, and the same of jaxclip.

In the expressions the optimizer is ``o``, of the learning rate 0.1.
"""

WARM_UP = "lambda t: (t + 1) / 10 if t < 10 else 0.99 ** (t - 10)"
SLOWER = "lambda t: 0.9 if t % 7 == 0 else 1.001"

CASES = {
    f"LambdaLR(o, {WARM_UP})": f"lambda_lr(0.1, {WARM_UP}, total_iters=500)",
    "LambdaLR(o, lambda t: 1 / (1 + t))": "lambda_lr(0.1, lambda t: 1 / (1 + t))",
    f"MultiplicativeLR(o, {SLOWER})": (
        f"multiplicative_lr(0.1, {SLOWER}, total_iters=500)"
    ),
    "StepLR(o, 30)": "step_lr(0.1, 30)",
    "StepLR(o, 7, gamma=0.87)": "step_lr(0.1, 7, gamma=0.87)",
    "StepLR(o, 1, gamma=1.01)": "step_lr(0.1, 1, gamma=1.01)",
    "MultiStepLR(o, [30, 80])": "multi_step_lr(0.1, [30, 80])",
    "MultiStepLR(o, [200, 0, 5, 5, 90], 0.3)": (
        "multi_step_lr(0.1, [200, 0, 5, 5, 90], 0.3)"
    ),
    "MultiStepLR(o, [])": "multi_step_lr(0.1, [])",
    "ConstantLR(o)": "constant_lr(0.1)",
    "ConstantLR(o, 0.25, 40)": "constant_lr(0.1, 0.25, 40)",
    "ConstantLR(o, 1.0, 1)": "constant_lr(0.1, 1.0, 1)",
    "LinearLR(o)": "linear_lr(0.1)",
    "LinearLR(o, 0.001, 1.0, 100)": "linear_lr(0.1, 0.001, 1.0, 100)",
    "LinearLR(o, 1.0, 0.0, 450)": "linear_lr(0.1, 1.0, 0.0, 450)",
    "LinearLR(o, 0.9, 0.1, 1)": "linear_lr(0.1, 0.9, 0.1, 1)",
    "ExponentialLR(o, 0.9)": "exponential_lr(0.1, 0.9)",
    "ExponentialLR(o, 1.003)": "exponential_lr(0.1, 1.003)",
    "PolynomialLR(o)": "polynomial_lr(0.1)",
    "PolynomialLR(o, 400, 0.9)": "polynomial_lr(0.1, 400, 0.9)",
    "PolynomialLR(o, 90, power=3.5)": "polynomial_lr(0.1, 90, power=3.5)",
    "PolynomialLR(o, 90, power=0.0)": "polynomial_lr(0.1, 90, power=0.0)",
    "CosineAnnealingLR(o, 500)": "cosine_annealing_lr(0.1, 500)",
    "CosineAnnealingLR(o, 100, 1e-4)": "cosine_annealing_lr(0.1, 100, 1e-4)",
    "CosineAnnealingLR(o, 7, 0.02)": "cosine_annealing_lr(0.1, 7, 0.02)",
    "CosineAnnealingLR(o, 1)": "cosine_annealing_lr(0.1, 1)",
    "CosineAnnealingLR(o, 20, 0.3)": "cosine_annealing_lr(0.1, 20, eta_min=0.3)",
    "CosineAnnealingWarmRestarts(o, 50)": "cosine_annealing_warm_restarts(0.1, 50)",
    "CosineAnnealingWarmRestarts(o, 1, 2, 1e-3)": (
        "cosine_annealing_warm_restarts(0.1, 1, 2, 1e-3)"
    ),
    "CosineAnnealingWarmRestarts(o, 10, T_mult=3)": (
        "cosine_annealing_warm_restarts(0.1, 10, T_mult=3)"
    ),
    "CyclicLR(o, 0.001, 0.1)": "cyclic_lr(0.001, 0.1)",
    "CyclicLR(o, 0.01, 0.2, 30, 45)": "cyclic_lr(0.01, 0.2, 30, 45)",
    "CyclicLR(o, 0.01, 0.2, 30, 0)": "cyclic_lr(0.01, 0.2, 30, 0)",
    "CyclicLR(o, 0.0, 0.2, 13, mode='triangular2')": (
        "cyclic_lr(0.0, 0.2, 13, mode='triangular2')"
    ),
    "CyclicLR(o, 0.01, 0.2, 25, 11, mode='exp_range', gamma=0.995)": (
        "cyclic_lr(0.01, 0.2, 25, 11, mode='exp_range', gamma=0.995)"
    ),
    "CyclicLR(o, 0.01, 0.2, 9, scale_fn=lambda c: 1 / c)": (
        "cyclic_lr(0.01, 0.2, 9, scale_fn=lambda c: 1 / c)"
    ),
    "CyclicLR(o, 0.01, 0.2, 9, scale_fn=lambda t: 1 / (5 + t),"
    " scale_mode='iterations')": (
        "cyclic_lr(0.01, 0.2, 9, scale_fn=lambda t: 1 / (5 + t), "
        "scale_mode='iterations')"
    ),
    "OneCycleLR(o, 0.4, 500)": "one_cycle_lr(0.4, 500)",
    "OneCycleLR(o, 0.4, epochs=10, steps_per_epoch=51)": (
        "one_cycle_lr(0.4, epochs=10, steps_per_epoch=51)"
    ),
    "OneCycleLR(o, 0.4, 777, pct_start=0.37, three_phase=True, div_factor=3.0)": (
        "one_cycle_lr(0.4, 777, pct_start=0.37, three_phase=True, div_factor=3.0)"
    ),
    "OneCycleLR(o, 0.4, 501, anneal_strategy='linear', final_div_factor=10.0)": (
        "one_cycle_lr(0.4, 501, anneal_strategy='linear', final_div_factor=10.0)"
    ),
    "OneCycleLR(o, 0.4, 500, anneal_strategy='linear', pct_start=0.0)": (
        "one_cycle_lr(0.4, 500, anneal_strategy='linear', pct_start=0.0)"
    ),
    "OneCycleLR(o, 0.4, 502, pct_start=1.0)": "one_cycle_lr(0.4, 502, pct_start=1.0)",
    "OneCycleLR(o, 0.4, 501, pct_start=0.6, three_phase=True)": (
        "one_cycle_lr(0.4, 501, pct_start=0.6, three_phase=True)"
    ),
    "OneCycleLR(o, 0.4, 500, pct_start=0.001)": (
        "one_cycle_lr(0.4, 500, pct_start=0.001)"
    ),
    "SWALR(o, 0.02)": "swa_lr(0.1, 0.02)",
    "SWALR(o, 0.5, 60, 'linear')": "swa_lr(0.1, 0.5, 60, 'linear')",
    "SWALR(o, 0.02, 0)": "swa_lr(0.1, 0.02, 0)",
    "SequentialLR(o, [LinearLR(o, 0.01, total_iters=20), CosineAnnealingLR(o, 300)],"
    " [20])": (
        "sequential_lr([linear_lr(0.1, 0.01, total_iters=20),"
        " cosine_annealing_lr(0.1, 300)], [20])"
    ),
    "SequentialLR(o, [ConstantLR(o), ExponentialLR(o, 0.97),"
    f" MultiplicativeLR(o, {SLOWER}), StepLR(o, 9),"
    " CosineAnnealingWarmRestarts(o, 8, 2)], [3, 50, 90, 200])": (
        "sequential_lr([constant_lr(0.1), exponential_lr(0.1, 0.97),"
        f" multiplicative_lr(0.1, {SLOWER}, total_iters=500), step_lr(0.1, 9),"
        " cosine_annealing_warm_restarts(0.1, 8, 2)], [3, 50, 90, 200])"
    ),
    "SequentialLR(o, [PolynomialLR(o, 90), SWALR(o, 0.03, 10), MultiStepLR(o, [0, 4]),"
    " LambdaLR(o, lambda t: 0.9 ** t), CyclicLR(o, 0.1, 0.3, 8)],"
    " [60, 99, 130, 240])": (
        "sequential_lr([polynomial_lr(0.1, 90), swa_lr(0.1, 0.03, 10),"
        " multi_step_lr(0.1, [0, 4]),"
        " lambda_lr(0.1, lambda t: 0.9 ** t, total_iters=500),"
        " cyclic_lr(0.1, 0.3, 8)], [60, 99, 130, 240])"
    ),
    # torch gives all of them the first learning rate of the OneCycleLR.
    "SequentialLR(o, [OneCycleLR(o, 2.5, 100), StepLR(o, 30)], [100])": (
        "sequential_lr([one_cycle_lr(2.5, 100), step_lr(0.1, 30)], [100])"
    ),
    "SequentialLR(o, [StepLR(o, 30)], [])": "sequential_lr([step_lr(0.1, 30)], [])",
    "ChainedScheduler([ConstantLR(o, 0.1, 20), ExponentialLR(o, 0.99)])": (
        "chained_scheduler([constant_lr(0.1, 0.1, 20), exponential_lr(0.1, 0.99)])"
    ),
    f"ChainedScheduler([LinearLR(o, 0.1, total_iters=9), MultiplicativeLR(o, {SLOWER}),"
    " MultiStepLR(o, [0, 30, 80]), StepLR(o, 70, 0.5), PolynomialLR(o, 300, 2.0)])": (
        "chained_scheduler([linear_lr(0.1, 0.1, total_iters=9),"
        f" multiplicative_lr(0.1, {SLOWER}, total_iters=500),"
        " multi_step_lr(0.1, [0, 30, 80]), step_lr(0.1, 70, 0.5),"
        " polynomial_lr(0.1, 300, 2.0)])"
    ),
    "ChainedScheduler([LinearLR(o, 0.1, total_iters=9),"
    " CosineAnnealingLR(o, 200, 0.01)])": (
        "chained_scheduler([linear_lr(0.1, 0.1, total_iters=9),"
        " cosine_annealing_lr(0.1, 200, 0.01)], total_iters=500)"
    ),
    "ChainedScheduler([CosineAnnealingLR(o, 30, 0.01), ExponentialLR(o, 0.99)])": (
        "chained_scheduler([cosine_annealing_lr(0.1, 30, 0.01),"
        " exponential_lr(0.1, 0.99)], total_iters=500)"
    ),
    "ChainedScheduler([StepLR(o, 30), LambdaLR(o, lambda t: 1 / (1 + t)),"
    " PolynomialLR(o, 50)])": (
        "chained_scheduler([step_lr(0.1, 30), lambda_lr(0.1, lambda t: 1 / (1 + t)),"
        " polynomial_lr(0.1, 50)], total_iters=500)"
    ),
    "ChainedScheduler([ExponentialLR(o, 0.99), SWALR(o, 0.03, 50)])": (
        "chained_scheduler([exponential_lr(0.1, 0.99), swa_lr(0.1, 0.03, 50)],"
        " total_iters=500)"
    ),
    "ChainedScheduler([SequentialLR(o, [ConstantLR(o, 0.1, 9), StepLR(o, 5)], [4]),"
    " ConstantLR(o, 0.5, 30), ChainedScheduler([ExponentialLR(o, 0.999)])])": (
        "chained_scheduler([sequential_lr([constant_lr(0.1, 0.1, 9),"
        " step_lr(0.1, 5)], [4]), constant_lr(0.1, 0.5, 30),"
        " chained_scheduler([exponential_lr(0.1, 0.999)])], total_iters=500)"
    ),
}

FAR = {
    "StepLR(o, 3000, gamma=0.9)": "step_lr(0.1, 3000, gamma=0.9)",
    "ExponentialLR(o, 0.999999)": "exponential_lr(0.1, 0.999999)",
    "ExponentialLR(o, 1.00001)": "exponential_lr(0.1, 1.00001)",
    "MultiStepLR(o, [1000003, 2000003, 3000003], 0.3)": (
        "multi_step_lr(0.1, [1000003, 2000003, 3000003], 0.3)"
    ),
    "LinearLR(o, 1.0, 0.0, 3000017)": "linear_lr(0.1, 1.0, 0.0, 3000017)",
    "PolynomialLR(o, 5000011, 0.9)": "polynomial_lr(0.1, 5000011, 0.9)",
    "PolynomialLR(o, 5000011, 4.0)": "polynomial_lr(0.1, 5000011, 4.0)",
    "CosineAnnealingLR(o, 5000011)": "cosine_annealing_lr(0.1, 5000011)",
    "CosineAnnealingLR(o, 1013, 1e-6)": "cosine_annealing_lr(0.1, 1013, 1e-6)",
    "CosineAnnealingWarmRestarts(o, 10007)": (
        "cosine_annealing_warm_restarts(0.1, 10007)"
    ),
    "CosineAnnealingWarmRestarts(o, 17, 2, 1e-6)": (
        "cosine_annealing_warm_restarts(0.1, 17, 2, 1e-6)"
    ),
    "CyclicLR(o, 1e-4, 0.1, 1013, 2011)": "cyclic_lr(1e-4, 0.1, 1013, 2011)",
    "CyclicLR(o, 1e-4, 0.1, 10130, mode='triangular2')": (
        "cyclic_lr(1e-4, 0.1, 10130, mode='triangular2')"
    ),
    "CyclicLR(o, 1e-4, 0.1, 1013, mode='exp_range', gamma=0.999999)": (
        "cyclic_lr(1e-4, 0.1, 1013, mode='exp_range', gamma=0.999999)"
    ),
    "OneCycleLR(o, 0.1, 5000011)": "one_cycle_lr(0.1, 5000011)",
    "OneCycleLR(o, 0.1, 5000011, anneal_strategy='linear', three_phase=True)": (
        "one_cycle_lr(0.1, 5000011, anneal_strategy='linear', three_phase=True)"
    ),
}
"""What is held against torch at counts of up to five million."""
