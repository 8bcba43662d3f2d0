#![allow(clippy::unwrap_used)]
use super::*;
use crate::native::dropout::dropout;
use crate::random::Purpose;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

fn values(shape: &[i64], seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, CPU) * 0.7391 + seed as f64 * 1.37).sin() * 1.3 + (Tensor::arange(count, CPU) * 0.0173).cos() * 0.4).view(shape)
}

fn leaf(shape: &[i64], seed: i64, kind: Kind) -> Tensor {
    values(shape, seed).to_kind(kind).set_requires_grad(true)
}

fn drop(p: f64) -> Drop {
    Drop { p, stream: Stream::new(5, Purpose::Dropout, 3), offset: 40 }
}

/// Both functions on the same leaves: outputs and all gradients of a weighted sum agree to `tolerance` of the largest value.
fn agree(leaves: &[Tensor], tolerance: f64, fused: impl Fn() -> Tensor, reference: impl Fn() -> Tensor) {
    let run = |f: &dyn Fn() -> Tensor| {
        leaves.iter().for_each(|l| l.shallow_clone().zero_grad());
        let out = f();
        let weights = values(&out.size(), 77);
        (out.to_kind(Kind::Float) * weights).sum(Kind::Float).backward();
        let gradients = leaves.iter().map(|l| l.grad().to_kind(Kind::Float).copy());
        std::iter::once(out.detach().to_kind(Kind::Float).copy()).chain(gradients).collect::<Vec<_>>()
    };
    for (i, (a, b)) in run(&fused).iter().zip(run(&reference)).enumerate() {
        let worst = (a - &b).abs().max().double_value(&[]);
        let scale = b.abs().max().double_value(&[]).max(1e-3);
        assert!(worst <= tolerance * scale, "output or gradient {i}: {worst:e} of {scale:e}");
        assert!(b.abs().max().double_value(&[]) > 0.0, "gradient {i} is zero");
    }
}

#[test]
fn drop_add_norm_is_its_composition() {
    for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 2e-2)] {
        for (rows, width, p) in [(5, 64, 0.0), (300, 48, 0.3), (130, 37, 0.1)] {
            let leaves = [
                leaf(&[rows, width], 1, kind),
                leaf(&[width], 2, Kind::Float),
                leaf(&[rows, width], 3, kind),
                leaf(&[width], 4, Kind::Float),
                leaf(&[width], 5, Kind::Float),
            ];
            let [y, bias, residual, gamma, beta] = &leaves;
            // In fp32: libtorch adds up gradients of bf16 rows in bf16 and would be the less exact of the two.
            let wide = |t: &Tensor| t.to_kind(Kind::Float);
            agree(
                &leaves,
                tolerance,
                || drop_add_norm(y * 1.0, Some(bias), Some(residual), Norm { gamma, beta, eps: 1e-5 }, drop(p)).unwrap(),
                || {
                    let x = dropout(&(wide(y) + bias), p, drop(p).stream, drop(p).offset).unwrap() + wide(residual);
                    x.layer_norm([width], Some(gamma), Some(beta), 1e-5, true).to_kind(kind)
                },
            );
            agree(
                &[y.shallow_clone(), gamma.shallow_clone(), beta.shallow_clone()],
                tolerance,
                || drop_add_norm(y * 1.0, None, None, Norm { gamma, beta, eps: 1e-5 }, Drop::NONE).unwrap(),
                || wide(y).layer_norm([width], Some(gamma), Some(beta), 1e-5, true).to_kind(kind),
            );
        }
    }
}

#[test]
fn bias_gelu_is_its_composition() {
    for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1e-2)] {
        for (rows, width) in [(7, 32), (300, 41)] {
            let leaves = [leaf(&[rows, width], 1, kind), leaf(&[width], 2, Kind::Float)];
            agree(
                &leaves,
                tolerance,
                || bias_gelu(&leaves[0], &leaves[1]).unwrap(),
                || (&leaves[0] + leaves[1].to_kind(kind)).gelu("none"),
            );
        }
    }
}

#[test]
fn vocabulary_loss_is_its_composition() {
    for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 2e-2)] {
        for (rows, width, classes, smoothing) in [(9, 32, 50, 0.0), (200, 16, 333, 0.1)] {
            let leaves = [leaf(&[rows, width], 1, kind), leaf(&[classes, width], 2, Kind::Float), leaf(&[classes], 3, Kind::Float)];
            let targets = (Tensor::arange(rows, (Kind::Int64, Device::Cpu)) * 7).remainder(classes);
            let targets = targets.masked_fill(&Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(4).eq(1), -100);
            let [y, weight, bias] = &leaves;
            let table = Weight::new(weight.shallow_clone());
            agree(
                &leaves,
                tolerance,
                || vocabulary_loss(y, &table, bias, &targets, smoothing).unwrap() / 3.0,
                || {
                    let logits = y.linear(&weight.to_kind(kind), None::<&Tensor>).to_kind(Kind::Float) + bias;
                    logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Sum, -100, smoothing) / 3.0
                },
            );
        }
    }
    let message =
        vocabulary_loss(&values(&[1, 4], 1), &Weight::new(values(&[3, 4], 1)), &values(&[3], 1), &Tensor::from_slice(&[3i64]), 0.0)
            .unwrap_err();
    assert!(message.to_string().contains("not below 3"), "{message}");
}

#[test]
fn attention_is_its_composition() {
    if !attention_is_supported(Kind::Float, Device::Cpu, 32) {
        return;
    }
    for (kind, tolerance) in [(Kind::Float, 5e-6), (Kind::BFloat16, 3e-2)] {
        if !attention_is_supported(kind, Device::Cpu, 32) {
            continue;
        }
        for (batch, length, keys, heads, head, p, padded) in
            [(2, 96, 32, 2, 32, 0.0, false), (1, 70, 19, 2, 64, 0.2, false), (2, 33, 40, 1, 32, 0.1, true), (2, 130, 130, 2, 32, 0.0, true)]
        {
            let width = heads * head;
            let leaves =
                [leaf(&[batch, length, width], 1, kind), leaf(&[batch, keys, width], 2, kind), leaf(&[batch, keys, width], 3, kind)];
            let [q, k, v] = &leaves;
            let keep = padded.then(|| {
                let limits = (Tensor::arange(batch, (Kind::Int64, Device::Cpu)) * 9 + 12).unsqueeze(1);
                Tensor::arange(keys, (Kind::Int64, Device::Cpu)).unsqueeze(0).lt_tensor(&limits)
            });
            let split = |t: &Tensor| t.view([batch, -1, heads, head]).transpose(1, 2);
            agree(
                &leaves,
                tolerance,
                || attention(q, k, v, keep.as_ref(), heads, drop(p)).unwrap(),
                || {
                    let scores = (split(q) / (head as f64).sqrt()).matmul(&split(k).transpose(-2, -1)).to_kind(Kind::Float);
                    let scores = match &keep {
                        Some(keep) => scores.masked_fill(&keep.logical_not().unsqueeze(1).unsqueeze(1), f64::NEG_INFINITY),
                        None => scores,
                    };
                    let probabilities = scores.softmax(-1, Kind::Float).to_kind(kind);
                    let dropped = dropout(&probabilities, p, drop(p).stream, drop(p).offset).unwrap();
                    dropped.matmul(&split(v)).transpose(1, 2).reshape([batch, length, width])
                },
            );
        }
    }
}

#[test]
fn what_is_not_finite_stays_not_finite() {
    let bad = |x: &Tensor| x.isfinite().logical_not().any().int64_value(&[]) == 1;
    let x = values(&[4, 32], 1);
    let _ = x.get(1).narrow(0, 3, 1).fill_(f64::NAN);
    let (ones, zeros) = (Tensor::ones([32], CPU), Tensor::zeros([32], CPU));
    assert!(bad(&drop_add_norm(x.copy(), None, None, Norm { gamma: &ones, beta: &zeros, eps: 1e-5 }, Drop::NONE).unwrap()));
    assert!(bad(&bias_gelu(&x, &zeros).unwrap()));
    assert!(bad(
        &vocabulary_loss(&x, &Weight::new(values(&[9, 32], 2)), &values(&[9], 3), &Tensor::from_slice(&[1i64, 2, 3, 4]), 0.0).unwrap()
    ));
    if attention_is_supported(Kind::Float, Device::Cpu, 32) {
        let q = x.view([1, 4, 32]);
        let other = values(&[1, 8, 32], 4);
        assert!(bad(&attention(&q, &other, &other, None, 1, Drop::NONE).unwrap()));
        assert!(bad(&attention(&other, &q, &other.narrow(1, 0, 4), None, 1, Drop::NONE).unwrap()));
    }
}

/// Rows of a product in the kind of the pass, as the composition has it.
fn product(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    x.linear(&weight.to_kind(x.kind()), Some(&bias.to_kind(x.kind())))
}

fn norm_of(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Tensor {
    x.to_kind(Kind::Float).layer_norm(gamma.size(), Some(gamma), Some(beta), 1e-5, true).to_kind(x.kind())
}

#[test]
fn linear_is_its_composition() {
    for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 2e-2)] {
        let leaves = [leaf(&[2, 33, 24], 1, kind), leaf(&[40, 24], 2, Kind::Float), leaf(&[40], 3, Kind::Float)];
        let [x, w, b] = &leaves;
        let weight = Weight::new(w.shallow_clone());
        agree(&leaves, tolerance, || linear(x, &weight, Some(b)).unwrap(), || product(x, w, b));
        agree(&leaves[..2], tolerance, || linear(x, &weight, None).unwrap(), || x.linear(&w.to_kind(kind), None::<&Tensor>));
    }
}

/// Rows that do not fill a tile or a slice of 512, weights longer on either side; with AMX the sums are in fp32 to the end.
#[test]
fn a_weights_gradient_has_the_sums_of_a_product_in_fp64() {
    for (rows, inputs, outputs) in [(1, 32, 64), (33, 64, 32), (700, 96, 320), (1100, 320, 96), (64, 24, 40)] {
        let x = values(&[rows, inputs], 1).to_kind(Kind::BFloat16);
        let d_y = values(&[rows, outputs], 2).to_kind(Kind::BFloat16);
        let weight = Weight::new(leaf(&[outputs, inputs], 3, Kind::Float));
        let gradient = |threads| {
            tch::set_num_threads(threads);
            weight.tensor().shallow_clone().zero_grad();
            (linear(&x, &weight, None).unwrap() * &d_y).sum(Kind::Float).backward();
            weight.tensor().grad().copy()
        };
        let (one, two) = (gradient(1), gradient(2));
        assert!(one.equal(&two), "{rows} rows, {outputs} x {inputs}: another number of threads, other bits");
        let expected = d_y.to_kind(Kind::Double).tr().matmul(&x.to_kind(Kind::Double));
        let worst = (&one - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]);
        let in_fp32 = crate::native::runtime::has_tiles() && inputs % 32 == 0 && outputs % 32 == 0;
        assert!(worst < if in_fp32 { 1e-6 } else { 5e-3 }, "{rows} rows, {outputs} x {inputs}: {worst:e}");
    }
}

#[test]
fn feed_forward_and_output_norm_are_their_compositions() {
    for (kind, tolerance) in [(Kind::Float, 5e-6), (Kind::BFloat16, 4e-2)] {
        for (rows, d, f, p) in [(70, 32, 96, 0.0), (150, 24, 50, 0.2)] {
            let scaled = |shape: &[i64], seed| (values(shape, seed) * 0.2).set_requires_grad(true);
            let vector = |n: i64, seed| leaf(&[n], seed, Kind::Float);
            let leaves =
                [leaf(&[rows, d], 1, kind), scaled(&[f, d], 2), vector(f, 3), scaled(&[d, f], 4), vector(d, 5), vector(d, 6), vector(d, 7)];
            let [x, w1, b1, w2, b2, gamma, beta] = &leaves;
            let weights = [w1, w2].map(|w| Weight::new(w.shallow_clone()));
            let inner = Affine { weight: &weights[0], bias: b1 };
            let outer = Affine { weight: &weights[1], bias: b2 };
            let norm = Norm { gamma, beta, eps: 1e-5 };
            let dropped = |y: Tensor| dropout(&y, p, drop(p).stream, drop(p).offset).unwrap();
            agree(
                &leaves,
                tolerance,
                || feed_forward(x, inner, outer, norm, drop(p), None).unwrap(),
                || norm_of(&(dropped(product(&product(x, w1, b1).gelu("none"), w2, b2)) + x), gamma, beta),
            );
            // Some rows of it, with the dropout that they have among all.
            let chosen = Tensor::from_slice(&[0, 1, 17, rows - 1]);
            agree(
                &leaves,
                tolerance,
                || feed_forward(&take_rows(x, &chosen).unwrap(), inner, outer, norm, drop(p), Some(&chosen)).unwrap(),
                || norm_of(&(dropped(product(&product(x, w1, b1).gelu("none"), w2, b2)) + x), gamma, beta).index_select(0, &chosen),
            );
            let (o, residual) = (leaf(&[rows, f], 8, kind), x.shallow_clone());
            let leaves = [&o, &residual, w2, b2, gamma, beta].map(Tensor::shallow_clone);
            agree(
                &leaves,
                tolerance,
                || output_norm(&o, &residual, outer, norm, drop(p), None).unwrap(),
                || norm_of(&(dropped(product(&o, w2, b2)) + &residual), gamma, beta),
            );
        }
    }
}

#[test]
fn heads_are_their_composition() {
    // Gradients are small differences of large sums: rounding every tensor to bf16 in an fp32 composition moves them by up to a tenth. Of
    // one row alone the softmax's gradient is what is left of two numbers nearly alike: fp32 loses 2e-4 of the queries' weights'.
    for (kind, tolerance, of_one_row) in [(Kind::Float, 2e-4, 1e-3), (Kind::BFloat16, 0.15, 0.15)] {
        if !attention_is_supported(kind, Device::Cpu, 32) {
            continue;
        }
        // Projections: none, E = F, E and F; with and without padding; an input shorter than n.
        for (matrices, padded, length, p) in
            [(0, false, 40, 0.0), (0, true, 40, 0.1), (1, false, 40, 0.1), (1, true, 33, 0.0), (2, true, 40, 0.1), (2, false, 35, 0.0)]
        {
            let (batch, d, count, n, k) = (2, 64, 2, 40, 12);
            let weight = |seed| (values(&[d, d], seed) * 0.06).set_requires_grad(true);
            let projection = |seed| (values(&[k, n], seed) * 0.3).set_requires_grad(true);
            let mut leaves = vec![leaf(&[batch, length, d], 1, kind)];
            leaves.extend([2, 3, 4].map(weight));
            // A bias of all keys shifts every score of a row alike: its gradient is nothing but rounding.
            let biases = [5, 6, 7].map(|seed| values(&[d], seed) * 0.2);
            leaves.extend((0..matrices).map(|i| projection(8 + i)));
            let weights: Vec<Weight> = leaves[1..].iter().map(|w| Weight::new(w.shallow_clone())).collect();
            let keep = padded.then(|| {
                let limits = (Tensor::arange(batch, (Kind::Int64, Device::Cpu)) * 9 + 12).unsqueeze(1);
                Tensor::arange(length, (Kind::Int64, Device::Cpu)).unsqueeze(0).lt_tensor(&limits)
            });
            let affine = |i: usize| Affine { weight: &weights[i], bias: &biases[i] };
            let given = HeadWeights {
                query: affine(0),
                key: affine(1),
                value: affine(2),
                project_keys: weights.get(3),
                project_values: weights.get(4),
            };
            let split = |t: Tensor| t.view([batch, -1, count, d / count]).transpose(1, 2);
            // In fp64 on rounded values: libtorch's own rounding is none of the difference.
            let wide = |t: &Tensor| t.to_kind(kind).to_kind(Kind::Double);
            let composed = || {
                let x = &wide(&leaves[0]);
                let real = match &keep {
                    Some(keep) if matrices > 0 => x * keep.unsqueeze(-1).to_kind(Kind::Double),
                    _ => x.shallow_clone(),
                };
                let compress = |i: usize| match leaves.get(4 + i.min(matrices as usize - 1)) {
                    Some(e) => wide(&e.narrow(1, 0, length)).matmul(&real),
                    None => x.shallow_clone(),
                };
                let [keys, values] = if matrices == 0 { [x.shallow_clone(), x.shallow_clone()] } else { [compress(0), compress(1)] };
                let [q, k, v] =
                    [(x, 0), (&keys, 1), (&values, 2)].map(|(t, i)| split(product(t, &wide(&leaves[1 + i]), &wide(&biases[i]))));
                let scores = (q / ((d / count) as f64).sqrt()).matmul(&k.transpose(-2, -1));
                let scores = match &keep {
                    Some(keep) if matrices == 0 => scores.masked_fill(&keep.logical_not().unsqueeze(1).unsqueeze(1), f64::NEG_INFINITY),
                    _ => scores,
                };
                let probabilities = scores.softmax(-1, Kind::Double);
                let kept = dropout(&probabilities.ones_like().to_kind(Kind::Float), p, drop(p).stream, drop(p).offset).unwrap();
                (probabilities * kept).matmul(&v).transpose(1, 2).reshape([batch, length, d])
            };
            agree(&leaves, tolerance, || heads(&leaves[0], &given, keep.as_ref(), count, drop(p), None).unwrap(), composed);
            // Of some rows alone: none of them in a block of queries with the one before it, and many of one sequence.
            for rows in [vec![3, length + 4], (0..length).step_by(2).chain([length]).collect(), vec![batch * length - 1]] {
                let tolerance = if rows.len() == 1 { of_one_row } else { tolerance };
                let rows = Tensor::from_slice(&rows);
                agree(
                    &leaves,
                    tolerance,
                    || heads(&leaves[0], &given, keep.as_ref(), count, drop(p), Some(&rows)).unwrap(),
                    || composed().view([-1, d]).index_select(0, &rows),
                );
            }
        }
    }
}

#[test]
fn rows_are_taken_and_spread_and_must_ascend() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = leaf(&[900, 24], 1, kind);
        let rows = (Tensor::arange(300, (Kind::Int64, Device::Cpu)) * 3).set_requires_grad(false);
        let leaves = [x.shallow_clone()];
        agree(&leaves, 0.0, || take_rows(&x, &rows).unwrap(), || x.index_select(0, &rows));
        let few = [leaf(&[300, 24], 2, kind)];
        let zeros = || Tensor::zeros([900, 24], (kind, Device::Cpu));
        agree(&few, 0.0, || spread_rows(&few[0], &rows, 900).unwrap(), || zeros().index_copy(0, &rows, &few[0]));
    }
    let x = leaf(&[5, 8], 1, Kind::Float);
    for wrong in [vec![1i64, 1], vec![3, 2], vec![-1, 2], vec![0, 5]] {
        let error = take_rows(&x, &Tensor::from_slice(&wrong)).unwrap_err().to_string();
        assert!(error.contains("expected ascending numbers below 5"), "{wrong:?}: {error}");
    }
    assert!(take_rows(&x, &Tensor::from_slice::<i64>(&[])).unwrap().size() == [0, 8]);
}

#[test]
fn embedding_is_its_composition() {
    let pad = 1;
    let leaves = [leaf(&[50, 40], 1, Kind::Float), leaf(&[30, 40], 2, Kind::Float), leaf(&[40], 3, Kind::Float)];
    let [words, positions, token_type] = &leaves;
    let ids = (Tensor::arange(48, (Kind::Int64, Device::Cpu)) * 7).remainder(50).view([3, 16]);
    let places = (Tensor::arange(48, (Kind::Int64, Device::Cpu))).remainder(29).view([3, 16]);
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-2)] {
        agree(
            &leaves,
            tolerance,
            || embedding(words, positions, token_type, &ids, &places, pad, kind).unwrap(),
            || {
                let rows = |table: &Tensor, index: &Tensor| Tensor::embedding(table, index, pad, false, false);
                (rows(words, &ids) + rows(positions, &places) + token_type).to_kind(kind).view([-1, 40])
            },
        );
    }
    let far = embedding(words, positions, token_type, &(&ids + 9), &places, pad, Kind::Float).unwrap_err();
    assert!(far.to_string().contains("token id 58 is not below 50"), "{far}");
}

#[test]
fn a_changed_weight_gets_a_new_copy() {
    let weight = Weight::new(values(&[8, 8], 1));
    let x = values(&[4, 8], 2).to_kind(Kind::BFloat16);
    let by = |w: &Tensor| x.linear(&w.to_kind(Kind::BFloat16), None::<&Tensor>);
    for _ in 0..3 {
        assert!(linear(&x, &weight, None).unwrap().equal(&by(weight.tensor())));
        let _ = weight.tensor().shallow_clone().g_add_scalar_(0.37);
    }
    assert!(linear(&x, &weight.shallow_clone(), None).unwrap().equal(&by(weight.tensor())));
}
