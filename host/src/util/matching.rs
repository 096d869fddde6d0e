//! Maximum matchings of bipartite graphs.

const NOBODY: u32 = u32::MAX;

/// The size of a maximum matching of a bipartite graph (Hopcroft and Karp 1973). `neighbours` has
/// the neighbours of every vertex on the left, which are below `right`.
pub(crate) fn largest_matching(neighbours: &[Vec<u32>], right: usize) -> usize {
    let (mut of_left, mut of_right) = (vec![NOBODY; neighbours.len()], vec![NOBODY; right]);
    let mut size = 0;
    while let Some(layers) = layers(neighbours, &of_left, &of_right) {
        // The first neighbour of each vertex that was not tried in this round.
        let mut untried = vec![0; neighbours.len()];
        for start in 0..neighbours.len() {
            if of_left[start] != NOBODY {
                continue;
            }
            let mut path = vec![start];
            while let Some(&vertex) = path.last() {
                let Some(&neighbour) = neighbours[vertex].get(untried[vertex]) else {
                    path.pop();
                    continue;
                };
                untried[vertex] += 1;
                let next = of_right[neighbour as usize];
                if next == NOBODY {
                    for &vertex in &path {
                        let neighbour = neighbours[vertex][untried[vertex] - 1];
                        (of_left[vertex], of_right[neighbour as usize]) = (neighbour, vertex as u32);
                    }
                    size += 1;
                    break;
                }
                if layers[next as usize] == layers[vertex] + 1 {
                    path.push(next as usize);
                }
            }
        }
    }
    size
}

/// The distance of every vertex on the left from those without a partner, along paths that leave
/// the left side by any edge and return by one of the matching. None if no such path ends at a
/// vertex without a partner: the matching is then as large as possible.
fn layers(neighbours: &[Vec<u32>], of_left: &[u32], of_right: &[u32]) -> Option<Vec<u32>> {
    let mut queue: Vec<_> = (0..neighbours.len()).filter(|vertex| of_left[*vertex] == NOBODY).collect();
    let mut layers = vec![NOBODY; neighbours.len()];
    queue.iter().for_each(|vertex| layers[*vertex] = 0);
    let (mut first, mut can_grow) = (0, false);
    while let Some(&vertex) = queue.get(first) {
        first += 1;
        for &neighbour in &neighbours[vertex] {
            match of_right[neighbour as usize] {
                NOBODY => can_grow = true,
                next if layers[next as usize] == NOBODY => {
                    layers[next as usize] = layers[vertex] + 1;
                    queue.push(next as usize);
                }
                _ => {}
            }
        }
    }
    can_grow.then_some(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by trying every choice for the first vertex.
    fn by_trial(neighbours: &[Vec<u32>], taken: u64) -> usize {
        let Some((first, others)) = neighbours.split_first() else { return 0 };
        let free = first.iter().filter(|neighbour| taken & 1 << **neighbour == 0);
        let with_first = free.map(|neighbour| 1 + by_trial(others, taken | 1 << neighbour));
        with_first.chain([by_trial(others, taken)]).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn it_is_as_large_as_the_largest_that_trial_finds(
            neighbours in prop::collection::vec(prop::collection::vec(0u32..7, 0..4), 0..7)
        ) {
            prop_assert_eq!(largest_matching(&neighbours, 7), by_trial(&neighbours, 0));
        }
    }

    #[test]
    fn a_long_path_is_matched_perfectly() {
        // The first choice of every vertex but the last is the second choice of the one before.
        let length = 100_000;
        let mut neighbours: Vec<_> = (1..length).map(|vertex| vec![vertex, vertex - 1]).collect();
        neighbours.push(vec![length - 1]);
        assert_eq!(largest_matching(&neighbours, length as usize), length as usize);
    }
}
