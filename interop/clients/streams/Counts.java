import java.io.FileInputStream;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * Counts the events of a topic in a state store. The arguments are a file of settings, the two topics,
 * and how: "counts" keeps the changes of the store in a topic, "unlogged" does not, "regrouped" has a
 * topic from which the events come grouped by their values, and "exactly-once" uses transactions.
 */
public class Counts {
    public static void main(String[] args) throws Exception {
        Properties settings = new Properties();
        settings.load(new FileInputStream(args[0]));
        settings.put("default.key.serde", Serdes.String().getClass());
        settings.put("default.value.serde", Serdes.String().getClass());
        settings.put("statestore.cache.max.bytes", 0);
        settings.put("commit.interval.ms", 100);
        if (args[3].equals("exactly-once")) {
            settings.put("processing.guarantee", "exactly_once_v2");
        }
        Materialized<String, Long, KeyValueStore<Bytes, byte[]>> store = Materialized.as("counts");
        if (args[3].equals("unlogged") || args[3].equals("exactly-once")) {
            store = store.withLoggingDisabled();
        }
        StreamsBuilder builder = new StreamsBuilder();
        KStream<String, String> events = builder.stream(args[1]);
        (args[3].equals("regrouped") ? events.groupBy((key, value) -> value) : events.groupByKey())
            .count(store).toStream().mapValues(count -> count.toString()).to(args[2]);
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.setUncaughtExceptionHandler(e -> {
            e.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
    }
}
