//! What the readers of a result should know about its data: properties that do not make a data set
//! unusable but are usually mistakes.

use super::pack::pixels::Rows;
use super::{Dataset, Origin, Split};
use crate::Result;
use std::collections::BTreeSet;

impl Dataset {
    /// What a reader of results on these data should know: files that are not the published ones,
    /// classes without images, images that are all equal. Empty for usual data.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn findings(&self) -> Result<Vec<String>> {
        let [train, test] = [self.train.labels()?, self.test.labels()?];
        let [in_train, in_test]: [BTreeSet<i64>; 2] =
            [&train, &test].map(|labels| labels.iter().copied().collect());
        let all = || 0..self.classes;
        let is_present = |class: &i64| in_train.contains(class) || in_test.contains(class);

        let mut found = match &self.origin {
            Origin::Altered(how) => vec![how.clone()],
            Origin::Published | Origin::Own => Vec::new(),
        };
        found.extend(self.remarks.iter().cloned());
        let is_trainable = self.train.count() > 0;
        if !is_trainable {
            found.push(
                "there are no training images: these data can be evaluated, and not be trained on".to_owned(),
            );
        }
        match all().filter(is_present).collect::<Vec<_>>()[..] {
            [only] => {
                found.push(format!("all images have the label {only}: there is nothing to distinguish"))
            }
            _ => {
                let nowhere = all().filter(|class| !is_present(class));
                found.extend(self.about(
                    nowhere,
                    "no image of ",
                    ": the model has outputs that it never needs",
                ));
                let only_in_test = in_test.difference(&in_train).copied().filter(|_| is_trainable);
                found.extend(self.about(
                    only_in_test,
                    "no training image of ",
                    ", of which there are test images",
                ));
                let lowest = in_train.iter().chain(&in_test).min().copied().unwrap_or(0);
                if lowest > 0 && self.class_names.is_empty() {
                    found.push(format!(
                        "labels begin at {lowest}: the option relabel=true after the name of the data numbers them from 0"
                    ));
                }
                let only_in_train = in_train.difference(&in_test).copied();
                found.extend(self.about(
                    only_in_train,
                    "no test image of ",
                    ", of which there are training images",
                ));
            }
        }
        // What a pack's images showed when it was made is in its record.
        if Rows::of(&self.test.images).is_some() {
            return Ok(found);
        }
        for (name, split) in [("training", &self.train), ("test", &self.test)] {
            if split.count() > 1 && split.images_are_equal() {
                found.push(format!("all {} {name} images are equal", split.count()));
            }
        }
        if self.train.images.size() == self.test.images.size() && self.train.images == self.test.images {
            found.push("the test images are the training images".to_owned());
        }
        let (name, split) = if is_trainable { ("training", &self.train) } else { ("test", &self.test) };
        let brightest = split.images.max().int64_value(&[]);
        if brightest <= 1 {
            found.push(format!(
                "the highest value in the {name} images is {brightest}: expected pixels from 0 to 255"
            ));
        }
        Ok(found)
    }

    /// What a reader should know about a run that trains on the first `train` points and validates
    /// on the last `validation`: classes that are missing in such a part of the training split.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn findings_of_parts(&self, train: usize, validation: usize) -> Result<Vec<String>> {
        let labels = self.train.labels()?;
        let present: BTreeSet<i64> = labels.iter().copied().collect();
        let parts = [
            (&labels[..train.min(labels.len())], "training"),
            (&labels[labels.len().saturating_sub(validation)..], "validation"),
        ];
        let missing = parts.into_iter().filter(|(part, _)| !part.is_empty()).filter_map(|(part, name)| {
            let missing = present.iter().copied().filter(|class| !part.contains(class));
            let count = part.len();
            self.about(
                missing,
                &format!("none of the {count} {name} points is of "),
                ", of which there are others",
            )
        });
        Ok(missing.collect())
    }

    /// A sentence about some classes; none if there are none.
    fn about(&self, classes: impl Iterator<Item = i64>, start: &str, end: &str) -> Option<String> {
        const SHOWN: usize = 10;
        let name = |class: i64| match self.class_names.get(class as usize) {
            Some(name) => name.clone(),
            None => class.to_string(),
        };
        let names: Vec<_> = classes.map(name).collect();
        let noun = if names.len() == 1 { "class" } else { "classes" };
        let listed = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = match names.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!names.is_empty()).then(|| format!("{start}{noun} {listed}{more}{end}"))
    }
}

impl Split {
    fn labels(&self) -> Result<Vec<i64>> {
        Ok(Vec::try_from(&self.labels)?)
    }

    /// Whether every image is the first one. Usual data are recognised by their second image.
    fn images_are_equal(&self) -> bool {
        let first = self.images.get(0);
        (1..self.count()).all(|point| self.images.get(point) == first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    /// Images of 1 x 2 pixels that differ from each other, with these labels.
    fn split(labels: &[i64], first: u8) -> Split {
        let pixels: Vec<u8> = (first..).take(2 * labels.len()).collect();
        Split { images: Tensor::from_slice(&pixels).view([-1, 1, 1, 2]), labels: Tensor::from_slice(labels) }
    }

    fn dataset(train: &[i64], test: &[i64], classes: i64) -> Dataset {
        Dataset {
            name: "mine".to_owned(),
            train: split(train, 10),
            test: split(test, 100),
            classes,
            class_names: Vec::new(),
            checksums: Default::default(),
            remarks: Vec::new(),
            origin: Origin::Own,
        }
    }

    fn findings(train: &[i64], test: &[i64], classes: i64) -> Vec<String> {
        dataset(train, test, classes).findings().unwrap()
    }

    #[test]
    fn nothing_is_found_in_usual_data() {
        assert_eq!(findings(&[0, 1, 2, 0], &[2, 1, 0], 3), [""; 0]);
    }

    #[test]
    fn classes_without_images_are_found() {
        let end = ": the model has outputs that it never needs";
        let begins =
            "labels begin at 1: the option relabel=true after the name of the data numbers them from 0";
        assert_eq!(
            findings(&[1, 2, 1], &[2, 1], 3),
            [format!("no image of class 0{end}"), begins.to_owned()]
        );
        assert_eq!(findings(&[0, 3, 0], &[3, 0], 4), [format!("no image of classes 1, 2{end}")]);
        assert_eq!(
            findings(&[0, 15, 0], &[15, 0], 16),
            [format!("no image of classes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 4 more{end}")]
        );
        assert_eq!(
            findings(&[0, 1, 3, 0], &[2, 0, 1], 4),
            [
                "no training image of class 2, of which there are test images",
                "no test image of class 3, of which there are training images"
            ]
        );
        assert_eq!(
            findings(&[0, 0, 0], &[0, 0], 2),
            ["all images have the label 0: there is nothing to distinguish"]
        );
    }

    #[test]
    fn equal_images_are_found() {
        let mut data = dataset(&[0, 1], &[1, 0, 1], 2);
        let _ = data.train.images.fill_(7);
        assert_eq!(data.findings().unwrap(), ["all 2 training images are equal"]);
        let mut data = dataset(&[0, 1], &[1, 0, 1], 2);
        let _ = data.test.images.fill_(7);
        assert_eq!(data.findings().unwrap(), ["all 3 test images are equal"]);
        let mut data = dataset(&[0, 1], &[0, 1], 2);
        data.test = split(&[0, 1], 10);
        assert_eq!(data.findings().unwrap(), ["the test images are the training images"]);
    }

    #[test]
    fn pixels_between_0_and_1_are_found() {
        let mut data = dataset(&[0, 1], &[1, 0, 1], 2);
        data.train.images = Tensor::from_slice(&[0u8, 1, 1, 0]).view([2, 1, 1, 2]);
        assert_eq!(
            data.findings().unwrap(),
            ["the highest value in the training images is 1: expected pixels from 0 to 255"]
        );
        assert_eq!(data.train.images.kind(), Kind::Uint8);
    }

    #[test]
    fn classes_that_a_part_of_the_training_images_lacks_are_found() {
        let data = dataset(&[0, 0, 1, 1, 2, 2], &[0, 1, 2], 3);
        assert_eq!(data.findings_of_parts(6, 0).unwrap(), [""; 0]);
        assert_eq!(
            data.findings_of_parts(4, 2).unwrap(),
            [
                "none of the 4 training points is of class 2, of which there are others",
                "none of the 2 validation points is of classes 0, 1, of which there are others"
            ]
        );
    }

    #[test]
    fn classes_are_called_by_their_names() {
        let mut data = dataset(&[0, 0, 1], &[0, 1], 2);
        data.class_names = ["cat", "dog"].map(str::to_owned).into();
        assert_eq!(
            data.findings_of_parts(2, 0).unwrap(),
            ["none of the 2 training points is of class dog, of which there are others"]
        );
    }
}
