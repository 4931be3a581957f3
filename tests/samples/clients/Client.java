// Java's HTTP clients: Client.java MODE HOST PORT.
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

class Client {
    public static void main(String[] args) throws Exception {
        var mode = args[0];
        var scheme = mode.equals("tls") ? "https" : "http";
        var uri = URI.create(scheme + "://" + args[1] + ":" + args[2] + "/reviews/0");
        if (mode.equals("url")) {
            ((HttpURLConnection) uri.toURL().openConnection()).getResponseCode();
            return;
        }
        var version = mode.equals("http2") ? HttpClient.Version.HTTP_2 : HttpClient.Version.HTTP_1_1;
        var client = HttpClient.newBuilder().version(version).build();
        for (int i = 0; i < (mode.equals("http2") ? 2 : 1); i++) {
            client.send(HttpRequest.newBuilder(uri).build(), BodyHandlers.discarding());
        }
        System.exit(0);
    }
}
