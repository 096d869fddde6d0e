use crate::command::arguments::DataCommand;
use crate::util::console::say;
use crate::{Result, data};

/// `host data`
pub fn run(command: &DataCommand) -> Result<u8> {
    match command {
        DataCommand::Fetch { name, data_folder } => {
            let folder = data::fetch(name, data_folder, &|text| say(text))?;
            say(format_args!("{name} is in {}", folder.display()));
        }
        DataCommand::List { data_folder } => {
            for name in data::NAMES {
                let status = match data::load(name, data_folder) {
                    Ok(dataset) => {
                        let [train, test] = [dataset.train.count(), dataset.test.count()];
                        let findings = dataset.findings()?.into_iter().map(|finding| format!("; {finding}"));
                        format!(
                            "present: {train} training and {test} test images, {} classes{}",
                            dataset.classes,
                            findings.collect::<String>()
                        )
                    }
                    Err(error) if data_folder.join(name).exists() => {
                        format!("damaged: {}", error.to_string().lines().next().unwrap_or_default())
                    }
                    Err(_) => format!("missing; run `host data fetch {name}`"),
                };
                say(format_args!("{name:15}{status}"));
            }
        }
    }
    Ok(0)
}
